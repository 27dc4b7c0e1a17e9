//! What the fuzz targets do with their bytes, and how they mutate models.

pub mod checks;
pub mod mutate;
