//! Every instruction of machine form on every backend of this build, as vectors and as scalars, against
//! expectations computed in plain Rust.

mod across;
mod arithmetic;
mod blocks;
mod control;
mod harness;
mod legalised;
mod lowered;
mod matrices;
mod memory;
mod mutants;
mod ptx;
mod rows;
