//! What the environment chooses.
//!
//! `KERNELSMITH_PTX_INTERP`, pairs separated by commas: `seed=N` (random order of warps), `races=0` (no look-out for
//! races), `steps=N` (warp instructions of one launch), `sms=N` (multiprocessors that the device claims to have).
//!
//! `KERNELSMITH_PTX_FAULT`, likewise: `no-device`; `no-devices-listed` (initialised, but none is there); `old-driver`;
//! `old-device`; `memory=N` (bytes of the device); `launch=N` (the N-th kernel, counted from 1, fails while it runs);
//! `refuse=N` (its launch is refused); `assemble` (no text is accepted); `no-maps` (memory cannot be mapped at addresses
//! that are reserved); `map=N` (the N-th such mapping is refused); `no-graphs` (no memory for graphs); `link` (nothing is assembled to machine code); `binary`
//! (machine code is refused).

use kernelsmith_ptx_interp::Config;

/// CUDA 12.4
const VERSION: i32 = 12_040;
const OLD_VERSION: i32 = 11_040;
/// Of one launch; a runaway kernel ends after some minutes.
const STEPS: u64 = 1 << 32;
/// An H200 has these.
const SMS: i32 = 132;
const MEMORY: u64 = 8 << 30;

#[derive(Clone, Debug)]
pub struct Settings {
    pub config: Config,
    pub version: i32,
    pub devices: i32,
    pub capability: (i32, i32),
    pub sms: i32,
    pub memory: u64,
    /// `cuInit` finds no device.
    pub no_device: bool,
    pub fails: Option<u64>,
    pub refused: Option<u64>,
    pub assembles: bool,
    /// There are virtual memory calls.
    pub maps: bool,
    pub unmapped: Option<u64>,
    /// There is memory for graphs that can be launched.
    pub graphs: bool,
    pub refuses_links: bool,
    pub refuses_binaries: bool,
}

impl Settings {
    /// From the texts of the two variables.
    ///
    /// # Errors
    /// The word that is none of the above.
    pub fn parse(interp: &str, fault: &str) -> Result<Settings, String> {
        let config = Config { step_limit: STEPS, ..Config::default() };
        let mut s = Settings {
            config,
            version: VERSION,
            devices: 1,
            capability: (9, 0),
            sms: SMS,
            memory: MEMORY,
            no_device: false,
            fails: None,
            refused: None,
            assembles: true,
            maps: true,
            unmapped: None,
            graphs: true,
            refuses_links: false,
            refuses_binaries: false,
        };
        let words = |text: &str| -> Vec<(String, Option<u64>)> {
            let word = |w: &str| match w.split_once('=') {
                Some((name, n)) => (name.to_string(), n.parse().ok()),
                None => (w.to_string(), None),
            };
            text.split(',').map(str::trim).filter(|w| !w.is_empty()).map(word).collect()
        };
        for (name, n) in words(interp) {
            match (name.as_str(), n) {
                ("seed", Some(n)) => s.config.seed = Some(n),
                ("races", Some(n)) => s.config.races = n != 0,
                ("steps", Some(n)) => s.config.step_limit = n,
                ("sms", Some(n)) => s.sms = i32::try_from(n).map_err(|_| name)?.max(1),
                _ => return Err(name),
            }
        }
        for (name, n) in words(fault) {
            match (name.as_str(), n) {
                ("no-device", None) => s.no_device = true,
                ("no-devices-listed", None) => s.devices = 0,
                ("old-driver", None) => s.version = OLD_VERSION,
                ("old-device", None) => s.capability = (7, 0),
                ("memory", Some(n)) => s.memory = n,
                ("launch", Some(n)) => s.fails = Some(n),
                ("refuse", Some(n)) => s.refused = Some(n),
                ("assemble", None) => s.assembles = false,
                ("link", None) => s.refuses_links = true,
                ("binary", None) => s.refuses_binaries = true,
                ("no-maps", None) => s.maps = false,
                ("map", Some(n)) => s.unmapped = Some(n),
                ("no-graphs", None) => s.graphs = false,
                _ => return Err(name),
            }
        }
        Ok(s)
    }

    /// From the environment.
    pub(crate) fn read() -> Result<Settings, String> {
        let text = |name: &str| std::env::var(name).unwrap_or_default();
        Settings::parse(&text("KERNELSMITH_PTX_INTERP"), &text("KERNELSMITH_PTX_FAULT"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_known_or_refused() {
        let s = Settings::parse("seed=7, races=0,steps=100", "launch=3,memory=4096").unwrap();
        assert_eq!((s.config.seed, s.config.races, s.config.step_limit), (Some(7), false, 100));
        assert_eq!((s.fails, s.memory, s.refused), (Some(3), 4096, None));
        for (interp, fault) in [("seed", ""), ("speed=1", ""), ("", "launch"), ("", "fire")] {
            assert!(Settings::parse(interp, fault).is_err(), "{interp} {fault}");
        }
    }
}
