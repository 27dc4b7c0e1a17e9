//! ONNX Runtime as one more judge, in a process of its own (`scripts/ort_server.py`), which may crash.

use super::Fault;
use crate::arrays;
use ir::{DType, Module, Tensor};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub struct Ort {
    python: PathBuf,
    script: PathBuf,
    dir: PathBuf,
    process: Option<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Ort {
    /// `python` has onnxruntime and numpy; `dir` is for files in passing.
    pub fn new(python: PathBuf, script: PathBuf, dir: PathBuf) -> Ort {
        Ort { python, script, dir, process: None }
    }

    fn ask(&mut self, line: &str) -> std::io::Result<String> {
        if self.process.is_none() {
            let mut child = Command::new(&self.python)
                .arg(&self.script)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()?;
            let pipes = child.stdin.take().zip(child.stdout.take());
            let (input, output) = pipes.ok_or(std::io::ErrorKind::BrokenPipe)?;
            self.process = Some((child, input, BufReader::new(output)));
        }
        let Some((_, input, output)) = &mut self.process else {
            return Err(std::io::ErrorKind::NotConnected.into());
        };
        writeln!(input, "{line}")?;
        input.flush()?;
        let mut answer = String::new();
        output.read_line(&mut answer)?;
        Ok(answer.trim().to_string())
    }

    /// Outputs of the model in ONNX Runtime.
    pub fn run(&mut self, model: &[u8], inputs: &[Tensor], m: &Module) -> Result<Vec<Tensor>, Fault> {
        let refused = |e: &dyn std::fmt::Display| Fault::Refused(e.to_string());
        // numpy has no name for the others
        let known = |d: DType| !d.is_float() || matches!(d, DType::F64 | DType::F32 | DType::F16);
        let outputs: Vec<DType> = m.graph.outputs.iter().map(|&v| m.graph[v].ty.dtype).collect();
        if !inputs.iter().map(|t| t.dtype).chain(outputs.iter().copied()).all(|d| known(d) && d.bits() != 4) {
            return Err(Fault::Refused("an element type that numpy lacks".into()));
        }
        std::fs::create_dir_all(&self.dir).map_err(|e| refused(&e))?;
        std::fs::write(self.dir.join("model.onnx"), model).map_err(|e| refused(&e))?;
        for (i, t) in inputs.iter().enumerate() {
            arrays::write_npy(&self.dir.join(format!("in_{i}.npy")), t).map_err(|e| refused(&e))?;
        }
        let line = format!("{}\t{}", self.dir.display(), inputs.len());
        let answer = self.ask(&line);
        match answer.as_deref() {
            Ok("ok") => {}
            Ok("") | Err(_) => {
                if let Some((mut child, ..)) = self.process.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                return Err(Fault::Refused("ONNX Runtime crashed".into()));
            }
            Ok(message) => return Err(Fault::Refused(message.to_string())),
        }
        let read = |(i, &dtype): (usize, &DType)| {
            let array = arrays::read_npy(&self.dir.join(format!("out_{i}.npy"))).map_err(|e| refused(&e))?;
            array.into_tensor(dtype).map_err(|e| Fault::Wrong(format!("output {i}: {e}")))
        };
        outputs.iter().enumerate().map(read).collect()
    }
}

impl Drop for Ort {
    fn drop(&mut self) {
        if let Some((mut child, input, _)) = self.process.take() {
            drop(input);
            let _ = child.wait();
        }
    }
}
