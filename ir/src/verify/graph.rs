//! Verifier of the graph IR (being written; see the builder for the rules in force).
