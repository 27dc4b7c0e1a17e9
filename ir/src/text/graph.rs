//! Text of the graph IR (`.ksg`); printer and parser are being written.
