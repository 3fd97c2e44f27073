//! Threads that wait awake while a model runs.

use rayon::{ThreadPool, Yield};
use std::sync::atomic::{AtomicBool, Ordering};

/// Looks for work in a row before the rest of the machine is let in.
const LOOKS: u32 = 256;

/// Clears a flag, also when a panic passes.
struct Clear<'a>(&'a AtomicBool);

impl Drop for Clear<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Runs `work` on a thread of the pool. The other threads look for its parts all the while: a token has some hundred short
/// parallel sections, and waking a sleeping thread takes as long as many of them.
pub(crate) fn run<T: Send>(pool: &ThreadPool, work: impl FnOnce() -> T + Send) -> T {
    if pool.current_num_threads() < 2 {
        return pool.install(work);
    }
    let running = AtomicBool::new(true);
    pool.install(|| {
        rayon::scope(|scope| {
            let own = rayon::current_thread_index();
            let running = &running;
            scope.spawn_broadcast(move |_, context| {
                if own != Some(context.index()) {
                    look_for_work(running);
                }
            });
            let _clear = Clear(running);
            work()
        })
    })
}

fn look_for_work(running: &AtomicBool) {
    let mut idle = 0;
    while running.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle = 0;
            continue;
        }
        idle += 1;
        match idle % LOOKS {
            0 => std::thread::yield_now(),
            _ => std::hint::spin_loop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn parallel_sections_run_and_a_panic_ends_the_waiting() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = pool.build().unwrap();
            let sums = run(&pool, || {
                let sections = (0..50u64).map(|n| (0..1000 * n).into_par_iter().sum::<u64>());
                sections.collect::<Vec<u64>>()
            });
            let want: Vec<u64> = (0..50u64).map(|n| (0..1000 * n).sum()).collect();
            assert_eq!(sums, want);
            let fail = AssertUnwindSafe(|| run(&pool, || assert!(threads > 5)));
            let failed = catch_unwind(fail);
            assert!(failed.is_err());
            assert_eq!(run(&pool, || 7), 7);
        }
    }
}
