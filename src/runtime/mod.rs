//! The CPU runtime: bundle → execution plan → kernels → decode loop.
