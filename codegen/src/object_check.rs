//! The last look at an object before it leaves: it must need nothing from outside.

use crate::Fault;
use object::{Object, ObjectSymbol};

/// What the loader provides; code generators may form calls to these from plain loops.
const PROVIDED: [&str; 3] = ["memcpy", "memmove", "memset"];

/// Refuses objects with undefined symbols (a call into libm, say) that no loader provides.
pub(crate) fn check_self_contained(object: &[u8]) -> Result<(), Fault> {
    let file = object::File::parse(object).map_err(Fault::emitter)?;
    for symbol in file.symbols().filter(|s| s.is_undefined()) {
        let name = symbol.name().map_err(Fault::emitter)?;
        // index 0 of every ELF symbol table is a nameless undefined symbol
        if !name.is_empty() && !PROVIDED.contains(&name) {
            return Err(Fault::UndefinedSymbol(name.to_string()));
        }
    }
    Ok(())
}
