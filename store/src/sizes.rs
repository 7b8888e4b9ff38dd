//! How much is done at a time. A simulation has small ones, so that what is rare happens often.

/// See each field; the default is what members run with.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// A segment of the log is made of this many zeros, and the slack that the last batch may take.
    pub segment: usize,
    pub segment_slack: usize,
    /// The first segment of a member is made while somebody waits.
    pub first_segment_bytes: usize,
    /// A snapshot is taken after this many entries.
    pub snapshot_entries: u64,
    /// Entries that stay in memory behind a snapshot, for followers that are a little behind.
    pub catch_up_entries: u64,
    /// Bytes of applied entries that stay in memory before a snapshot takes their place, for members that are a little behind; and where there is
    /// no other member.
    pub log_bytes: usize,
    pub log_bytes_alone: usize,
    /// Keys in one record of a snapshot, and bytes of one that are sent to another member at a time.
    pub snapshot_keys: usize,
    pub snapshot_chunk_bytes: usize,
    /// Compacted revisions swept at once: below a millisecond of work.
    pub sweep_revisions: usize,
}

impl Sizes {
    /// Bytes of a segment.
    pub fn segment_bytes(&self) -> usize {
        self.segment + self.segment_slack
    }
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes {
            segment: 16 << 20,
            segment_slack: 1 << 20,
            first_segment_bytes: 1 << 20,
            snapshot_entries: 500_000,
            catch_up_entries: 2000,
            log_bytes: 16 << 20,
            log_bytes_alone: 256 << 10,
            snapshot_keys: 1000,
            snapshot_chunk_bytes: 256 << 10,
            sweep_revisions: 512,
        }
    }
}
