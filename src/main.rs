//! The `kernelsmith` command line.

fn main() -> std::process::ExitCode {
    kernelsmith::cli::main()
}
