//! tract as a contestant of `scripts/bench_models.py`, whose docstring has the protocol.
//!
//!     kernelsmith-bench-tract MODEL.onnx INPUTS.npz THREADS

use ndarray::{IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, ReadableElement};
use std::fs::File;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;
use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The array of a name as a tensor, if its elements are of type `T`.
fn typed<T: ReadableElement + Datum + Copy>(npz: &mut NpzReader<File>, name: &str) -> Option<Tensor> {
    let array = npz.by_name::<OwnedRepr<T>, IxDyn>(name).ok()?;
    let elements: Vec<T> = array.iter().copied().collect();
    Tensor::from_shape(array.shape(), &elements).ok()
}

fn read(npz: &mut NpzReader<File>, name: &str) -> Result<Tensor> {
    typed::<f32>(npz, name)
        .or_else(|| typed::<i64>(npz, name))
        .or_else(|| typed::<i32>(npz, name))
        .or_else(|| typed::<bool>(npz, name))
        .or_else(|| typed::<u8>(npz, name))
        .or_else(|| typed::<i8>(npz, name))
        .or_else(|| typed::<f64>(npz, name))
        .ok_or_else(|| format!("no input {name} of a type that is known here").into())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, inputs, threads] = args.as_slice() else {
        return Err("expected MODEL.onnx INPUTS.npz THREADS".into());
    };
    let threads: usize = threads.parse()?;
    if threads > 1 {
        set_default_executor(Executor::multithread(threads));
    }
    let began = Instant::now();
    // sizes of values inside follow from those of the inputs; what exporters note may have symbols for them
    let importer = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    let mut model = importer.model_for_path(Path::new(model))?;
    let mut npz = NpzReader::new(File::open(inputs)?)?;
    let outlets = model.input_outlets()?.to_vec();
    let mut values = TVec::new();
    for (i, outlet) in outlets.iter().enumerate() {
        let tensor = read(&mut npz, &model.node(outlet.node).name.clone())?;
        // sizes known beforehand are what it is fastest with
        model.set_input_fact(i, InferenceFact::dt_shape(tensor.datum_type(), tensor.shape()))?;
        values.push(tensor.into_tvalue());
    }
    let plan = model.into_optimized()?.into_runnable()?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::json!({ "compile_ms": began.elapsed().as_secs_f64() * 1e3 }))?;
    out.flush()?;
    for line in std::io::stdin().lock().lines() {
        let runs: usize = line?.trim().parse()?;
        let mut times = Vec::with_capacity(runs);
        for _ in 0..runs {
            let began = Instant::now();
            plan.run(values.clone())?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        writeln!(out, "{}", serde_json::json!({ "times_ms": times }))?;
        out.flush()?;
    }
    Ok(())
}
