//! The `kernelsmith` command line.

fn main() -> std::process::ExitCode {
    // SAFETY: called before any other thread exists. A reader that goes away (`| head`) ends the program
    // quietly, as it does every other tool; Rust's default would be a panic in `println!`.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    kernelsmith::cli::main()
}
