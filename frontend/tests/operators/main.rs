//! Operators against plain loops: each test builds a model of one node, imports it and runs it on the
//! reference interpreter.

mod attention;
mod learning;
mod microsoft;
mod model;
mod numeric;
mod quantised;
mod recurrent;
