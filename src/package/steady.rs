//! A file that goes to the disk while it is written, so that little is left to wait for at its end.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::thread::JoinHandle;

/// Bytes written between two requests to bring the file to the disk.
const STEP: u64 = 64 << 20;

/// A file being written. A thread of its own syncs it every now and then.
#[derive(Debug)]
pub struct SteadyFile {
    file: File,
    /// Bytes since the last request.
    unsynced: u64,
    syncing: Option<JoinHandle<io::Result<()>>>,
}

impl SteadyFile {
    /// Takes a file opened for writing.
    pub fn new(file: File) -> Self {
        Self {
            file,
            unsynced: 0,
            syncing: None,
        }
    }

    /// Shortens the file to `len` bytes.
    ///
    /// # Errors
    /// As [`File::set_len`].
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    /// Brings the file to the disk.
    ///
    /// # Errors
    /// What failed since the file was made: it is not on the disk.
    pub fn finish(mut self) -> io::Result<()> {
        self.join()?;
        self.file.sync_all()
    }

    fn join(&mut self) -> io::Result<()> {
        match self.syncing.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("the thread that syncs has panicked")),
        }
    }

    fn wrote(&mut self, bytes: usize) -> io::Result<()> {
        self.unsynced += bytes as u64;
        let busy = self.syncing.as_ref().is_some_and(|t| !t.is_finished());
        if self.unsynced < STEP || busy {
            return Ok(());
        }
        self.join()?;
        self.unsynced = 0;
        let file = self.file.try_clone()?;
        let thread = std::thread::Builder::new().name("sync".to_owned());
        self.syncing = Some(thread.spawn(move || file.sync_data())?);
        Ok(())
    }
}

impl Write for SteadyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.wrote(written)?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Read for SteadyFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.file.read(out)
    }
}

impl Seek for SteadyFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_there_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let mut file = SteadyFile::new(File::create(&path).unwrap());
        let mut expected = Vec::new();
        // Past several requests to sync.
        let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
        for i in 0..150u8 {
            file.write_all(&[i]).unwrap();
            file.write_all(&block).unwrap();
            expected.push(i);
            expected.extend_from_slice(&block);
        }
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(b"head").unwrap();
        expected[..4].copy_from_slice(b"head");
        file.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == expected);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "x").unwrap();
        let mut file = SteadyFile::new(File::open(&path).unwrap());
        assert!(file.write_all(b"y").is_err());
    }
}
