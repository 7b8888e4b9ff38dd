//! Bugs that are planted on purpose, to see that the simulation finds them.
//!
//! `bug!("name")` is true while a simulation has switched that bug on. Without the feature `simulation` it is the constant `false`,
//! and the compiler removes what stands behind it.

#[cfg(not(feature = "simulation"))]
macro_rules! bug {
    ($name:literal) => {
        false
    };
}

#[cfg(feature = "simulation")]
macro_rules! bug {
    ($name:literal) => {
        $crate::simulation::is_planted($name)
    };
}
