//! Assembling PTX with NVIDIA's ptxas, for tests: the second opinion on syntax, types and resources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// An installed ptxas.
#[derive(Debug, Clone)]
pub struct Ptxas {
    path: PathBuf,
}

/// What ptxas says about a text that it accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Distinct texts assembled.
    pub texts: usize,
    /// Most registers of any kernel.
    pub registers: u32,
}

impl Ptxas {
    /// The one that `KERNELSMITH_PTXAS` names, that `scripts/ptxas.sh` has installed, or on the path.
    pub fn find() -> Option<Ptxas> {
        let named = std::env::var_os("KERNELSMITH_PTXAS").map(PathBuf::from);
        let here = std::env::current_dir().ok();
        let installed = here.iter().flat_map(|d| d.ancestors()).map(|d| d.join(".venv/ptxas/bin/ptxas"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path: Vec<PathBuf> = std::env::split_paths(&path).map(|d| d.join("ptxas")).collect();
        let found = named.into_iter().chain(installed).chain(on_path).find(|p| p.is_file())?;
        Some(Ptxas { path: found })
    }

    /// [`Ptxas::find`] for a test, which says on standard error when it is skipped.
    /// `KERNELSMITH_REQUIRE_PTXAS=1` makes absence a failure.
    pub fn or_skip(test: &str) -> Option<Ptxas> {
        let found = Ptxas::find();
        if found.is_none() {
            let needed = std::env::var_os("KERNELSMITH_REQUIRE_PTXAS").is_some();
            assert!(!needed, "{test} needs ptxas: run scripts/ptxas.sh");
            eprintln!("skipped: {test} needs ptxas (scripts/ptxas.sh)");
        }
        found
    }

    /// Assembles every distinct text for `arch` (`sm_80`, `sm_90a`), many to a call. The errors name the text: what
    /// ptxas rejects, spills, and the advice C75xx and C76xx, which ptxas gives as information only.
    pub fn assemble(&self, arch: &str, texts: &[(String, String)]) -> Result<Report, Vec<String>> {
        static RUN: AtomicU32 = AtomicU32::new(0);
        let run = RUN.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("kernelsmith-ptxas-{}-{run}", std::process::id()));
        std::fs::create_dir_all(&dir).map_err(|e| vec![format!("{}: {e}", dir.display())])?;
        let mut seen = BTreeSet::new();
        let distinct: Vec<&(String, String)> =
            texts.iter().filter(|(_, t)| seen.insert(t.as_str())).collect();
        let (mut report, mut errors) = (Report { texts: distinct.len(), registers: 0 }, Vec::new());
        for batch in batches(&distinct) {
            let together = self.one(&dir, arch, &batch.text);
            if let Ok(registers) = together {
                report.registers = report.registers.max(registers);
                continue;
            }
            // one by one, to tell whose fault it is
            let alone = |(name, text): &&(String, String)| {
                let said = self.one(&dir, arch, text).err()?;
                Some(format!("{name} for {arch}: {said}"))
            };
            let found: Vec<String> = batch.members.iter().filter_map(alone).collect();
            if found.is_empty() {
                errors.extend(together.err());
            }
            errors.extend(found);
        }
        // a leftover folder of temporary files is not worth an error
        let _ = std::fs::remove_dir_all(&dir);
        if errors.is_empty() { Ok(report) } else { Err(errors) }
    }

    /// Another tool of the toolkit that lies in the same folder.
    pub fn beside(&self, tool: &str) -> Option<PathBuf> {
        Some(self.path.parent()?.join(tool)).filter(|p| p.is_file())
    }

    /// Assembles one text into a file; gives what ptxas says about it.
    pub fn cubin(&self, arch: &str, text: &str, cubin: &Path) -> Result<String, String> {
        let input = cubin.with_extension("ptx");
        std::fs::write(&input, text).map_err(|e| e.to_string())?;
        let mut command = Command::new(&self.path);
        command.arg(format!("-arch={arch}")).args(["-v", "-o"]).arg(cubin).arg(&input);
        let out = command.output().map_err(|e| format!("{}: {e}", self.path.display()))?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        if out.status.success() { Ok(said) } else { Err(said) }
    }

    fn one(&self, dir: &Path, arch: &str, text: &str) -> Result<u32, String> {
        judge(&self.cubin(arch, text, &dir.join("k.cubin"))?)
    }
}

/// Texts that go to ptxas together.
struct Batch<'a> {
    text: String,
    members: Vec<&'a (String, String)>,
}

/// Modules with one entry and nothing else but directives in front of it share a file with others of the same
/// directives; any other text goes alone.
fn batches<'a>(texts: &[&'a (String, String)]) -> Vec<Batch<'a>> {
    const ENTRY: &str = ".visible .entry ";
    const LARGEST: usize = 32;
    let mut out: Vec<Batch> = Vec::new();
    // directives in front of the entries, and the batch that is being filled with them
    let mut open: Vec<(&str, usize)> = Vec::new();
    for &member in texts {
        let text = member.1.as_str();
        let single = text.match_indices(".entry ").count() == 1 && !text.contains(".func");
        let Some((header, entry)) = text.split_once(ENTRY).filter(|(h, _)| single && !h.contains('[')) else {
            out.push(Batch { text: text.into(), members: vec![member] });
            continue;
        };
        let at = match open.iter().find(|(h, i)| *h == header && out[*i].members.len() < LARGEST) {
            Some((_, i)) => *i,
            None => {
                out.push(Batch { text: header.into(), members: Vec::new() });
                open.retain(|(h, _)| *h != header);
                open.push((header, out.len() - 1));
                out.len() - 1
            }
        };
        let batch = &mut out[at];
        // names only have to differ
        batch.text += &format!("{ENTRY}k{}_{entry}\n", batch.members.len());
        batch.members.push(member);
    }
    out
}

/// The register count in ptxas's verbose output, or what is wrong.
fn judge(said: &str) -> Result<u32, String> {
    let advice = said.lines().find(|l| l.contains("(C75") || l.contains("(C76"));
    if let Some(line) = advice {
        return Err(line.to_string());
    }
    let spills = |l: &&str| l.contains("bytes spill stores") && !l.contains(" 0 bytes spill stores");
    if let Some(line) = said.lines().find(spills) {
        return Err(line.trim().to_string());
    }
    let registers = |l: &str| l.split("Used ").nth(1)?.split(' ').next()?.parse::<u32>().ok();
    Ok(said.lines().filter_map(registers).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_of_equal_headers_go_together() {
        let text = |target: &str, name: &str| {
            (
                name.to_string(),
                format!(".version 7.0\n.target {target}\n\n.visible .entry {name}()\n{{ ret; }}\n"),
            )
        };
        let texts = [text("sm_80", "a"), text("sm_90a", "b"), text("sm_80", "a2"), text("sm_80", "c")];
        let two =
            (".two".to_string(), ".visible .entry x() { ret; }\n.visible .entry y() { ret; }".to_string());
        let all: Vec<&(String, String)> = texts.iter().chain([&two]).collect();
        let found = batches(&all);
        let sizes: Vec<usize> = found.iter().map(|b| b.members.len()).collect();
        assert_eq!(sizes, [3, 1, 1]);
        assert_eq!(found[0].text.matches(".version").count(), 1);
        assert!(found[0].text.contains(".entry k2_c()"), "{}", found[0].text);
        assert_eq!(found[2].text, two.1);
    }

    #[test]
    fn spills_and_advice_are_found_in_the_output() {
        let good = "ptxas info    : 0 bytes gmem\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                    ptxas info    : Used 168 registers, used 1 barriers";
        assert_eq!(judge(good), Ok(168));
        assert!(judge(&good.replace(" 0 bytes spill stores", " 2304 bytes spill stores")).is_err());
        assert!(judge("ptxas info    : (C7512) Potential Performance Loss").is_err());
    }
}
