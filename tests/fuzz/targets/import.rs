#![no_main]
//! Bytes to the ONNX importer; half of the mutations are made on the model and not on its bytes.

use kernelsmith_fuzz::{checks, mutate};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|data: &[u8]| checks::import(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 8 != 0
        && let Some(n) = mutate::model(data, size, max_size, seed)
    {
        return n;
    }
    fuzzer_mutate(data, size, max_size)
});
