//! The cache on disk: what is found in it, what is not trusted, what several processes do to it.

use kernelsmith::cache::{Cache, CacheOptions};
use kernelsmith::ir::Tensor;
use kernelsmith::{CompileOptions, Compiled, arrays, codegen, compile};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder with a copy of the example network and an empty cache, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let dir = std::env::temp_dir().join(format!("kernelsmith-cache-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let scratch = Scratch(dir);
        scratch.copy_model("digits.onnx");
        scratch
    }

    fn copy_model(&self, name: &str) -> PathBuf {
        let digits = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits/digits.onnx");
        let path = self.0.join(name);
        std::fs::copy(digits, &path).unwrap();
        // a model that changed as it was read is not kept, and the clock of files is coarse
        std::thread::sleep(Duration::from_millis(30));
        path
    }

    fn options(&self) -> CompileOptions {
        let cache = CacheOptions { dir: self.0.join("cache"), max_bytes: 1 << 30 };
        CompileOptions { cache: Some(cache), threads: 2, ..Default::default() }
    }

    fn model(&self) -> PathBuf {
        self.0.join("digits.onnx")
    }

    fn entries(&self, part: &str, extension: Option<&str>) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.0.join("cache/v1").join(part)).unwrap();
        let mut files: Vec<PathBuf> = files.map(|f| f.unwrap().path()).collect();
        files.retain(|p| p.extension().and_then(|e| e.to_str()) == extension);
        files
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn outputs(compiled: &Compiled) -> Vec<Tensor> {
    let inputs: Vec<Tensor> =
        compiled.inputs.iter().map(|i| arrays::random(i.dtype, i.least.clone(), 5)).collect();
    compiled.run(&mut compiled.context(), &inputs).unwrap()
}

fn ready(path: &Path, options: &CompileOptions) -> Compiled {
    let mut compiled = compile(path, options).unwrap();
    compiled.saved().unwrap();
    compiled
}

#[test]
fn a_second_start_compiles_nothing() {
    if codegen::available().is_empty() {
        return;
    }
    let s = Scratch::new("second");
    let first = ready(&s.model(), &s.options());
    let second = ready(&s.model(), &s.options());
    assert!(!first.cached && first.stats.compiled > 0);
    assert!(second.cached && second.stats.compiled == 0);
    assert_eq!((&first.inputs, &first.outputs), (&second.inputs, &second.outputs));
    assert_eq!(outputs(&first), outputs(&second));
    // other options are another program, made of the same kernels
    let fixed = CompileOptions { dims: vec![("no_such_dim".into(), 3)], ..s.options() };
    let third = ready(&s.model(), &fixed);
    assert!(!third.cached && third.stats.compiled == 0);
    assert_eq!(outputs(&first), outputs(&third));
    // the same contents in another file are the same program, once the file is known
    let copy = s.copy_model("copy.onnx");
    ready(&copy, &s.options());
    assert!(ready(&copy, &s.options()).cached);
    assert_eq!(s.entries("programs", Some("ksp")).len(), 2);
}

#[test]
fn a_changed_model_is_another_one() {
    if codegen::available().is_empty() {
        return;
    }
    let s = Scratch::new("changed");
    ready(&s.model(), &s.options());
    let mut bytes = std::fs::read(s.model()).unwrap();
    // the producer's name in the header of the file: other contents, the same network
    bytes.extend_from_slice(&[0x32, 1, b'x']);
    std::fs::write(s.model(), bytes).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert!(!ready(&s.model(), &s.options()).cached);
    assert!(ready(&s.model(), &s.options()).cached);
}

#[test]
fn damaged_entries_are_built_anew() {
    if codegen::available().is_empty() {
        return;
    }
    let s = Scratch::new("damaged");
    let want = outputs(&ready(&s.model(), &s.options()));
    let entry = s.entries("programs", Some("ksp")).remove(0);
    let good = std::fs::read(&entry).unwrap();
    let mut damages: Vec<Vec<u8>> = vec![Vec::new(), b"nonsense".to_vec(), good[..good.len() - 1].to_vec()];
    // header, metadata, the first and the last byte of the weights
    let data = u64::from_le_bytes(good[24..32].try_into().unwrap()) as usize;
    for at in [0, 9, 20, 50, 200, data / 2, data, good.len() - 65] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        damages.push(bad);
    }
    for bad in damages {
        std::fs::write(&entry, &bad).unwrap();
        let rebuilt = ready(&s.model(), &s.options());
        assert_eq!(outputs(&rebuilt), want);
        // whatever was damaged, a byte that decides nothing apart, is whole again
        assert!(rebuilt.cached || std::fs::read(&entry).unwrap() == good);
        assert!(!rebuilt.cached || bad.len() == good.len());
        assert_eq!(outputs(&ready(&s.model(), &s.options())), want);
    }
    // kernels, where the program is gone
    for kernel in s.entries("kernels", None) {
        let mut bytes = std::fs::read(&kernel).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 0x10;
        std::fs::write(&kernel, bytes).unwrap();
    }
    std::fs::remove_file(&entry).unwrap();
    let rebuilt = ready(&s.model(), &s.options());
    assert!(rebuilt.stats.compiled > 0);
    assert_eq!(outputs(&rebuilt), want);
    // a list of files that is no list
    for model in s.entries("models", None) {
        std::fs::write(model, [0xff; 40]).unwrap();
    }
    assert_eq!(outputs(&ready(&s.model(), &s.options())), want);
}

#[test]
fn the_bound_is_kept() {
    if codegen::available().is_empty() {
        return;
    }
    let s = Scratch::new("bound");
    ready(&s.model(), &s.options());
    let cache = CacheOptions { max_bytes: 0, ..s.options().cache.unwrap() };
    Cache::open(&cache).unwrap().evict().unwrap();
    assert!(s.entries("programs", Some("ksp")).is_empty() && s.entries("kernels", None).is_empty());
    let again = ready(&s.model(), &s.options());
    assert!(!again.cached && again.stats.compiled > 0);
}

#[test]
fn many_at_once() {
    if codegen::available().is_empty() {
        return;
    }
    let s = Scratch::new("many");
    let want = outputs(&compile(&s.model(), &CompileOptions { threads: 2, ..Default::default() }).unwrap());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..3 {
                        assert_eq!(outputs(&ready(&s.model(), &s.options())), want);
                    }
                })
            })
            .collect();
        for w in workers {
            w.join().unwrap();
        }
    });
    assert!(s.entries("programs", Some("part")).is_empty());
}

#[test]
fn a_directory_of_others_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let s = Scratch::new("others");
    let options = s.options().cache.unwrap();
    Cache::open(&options).unwrap();
    let root = options.dir.join("v1");
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Cache::open(&options).is_err());
}
