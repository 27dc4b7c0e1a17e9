#![no_main]
//! Text to the parsers of graph, kernel and loop IR; most mutations are made on tokens and not on bytes.

use kernelsmith_fuzz::{checks, mutate};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

fuzz_target!(|data: &[u8]| checks::text(data));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 3 != 0
        && let Some(n) = mutate::text(data, size, max_size, seed)
    {
        return n;
    }
    fuzzer_mutate(data, size, max_size)
});
