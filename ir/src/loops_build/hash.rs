//! A fast hash for the builder's tables.

use std::hash::Hasher;

/// Multiplicative hasher: instructions are small keys and collisions only cost time.
#[derive(Default)]
pub(super) struct FastHasher(u64);

impl FastHasher {
    fn word(&mut self, x: u64) {
        self.0 = (self.0.rotate_left(5) ^ x).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        // the multiplication leaves its entropy in the high bits, tables use the low ones too
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut w = [0; 8];
            w[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(w));
        }
    }
    fn write_u8(&mut self, x: u8) {
        self.word(x.into());
    }
    fn write_u32(&mut self, x: u32) {
        self.word(x.into());
    }
    fn write_u64(&mut self, x: u64) {
        self.word(x);
    }
    fn write_i64(&mut self, x: i64) {
        self.word(x as u64);
    }
    fn write_usize(&mut self, x: usize) {
        self.word(x as u64);
    }
}
