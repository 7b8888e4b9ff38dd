//! Records in a file: a length and a checksum before each payload, and what a damaged file means.
//!
//! A crash can tear the tail of the file that was being written: that part was never acknowledged and is cut off. Damage anywhere
//! else is not a crash's doing; then the replica stops rather than guess.

use std::io::{self, Read};

/// Bytes before each payload: length (4, little-endian) and CRC-32 of the payload (4).
pub const HEADER: usize = 8;
/// No payload is larger: a length above it is damage.
const PAYLOAD_MAX: usize = 256 << 20;

/// Appends a record to a buffer.
pub fn push(buffer: &mut Vec<u8>, payload: &[u8]) {
    buffer.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    buffer.extend_from_slice(payload);
}

/// Appends a record whose payload is written in place.
pub fn push_with(buffer: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEADER]);
    write(buffer);
    let payload = &buffer[start + HEADER..];
    let (len, sum) = (payload.len() as u32, crc32fast::hash(payload));
    buffer[start..start + 4].copy_from_slice(&len.to_le_bytes());
    buffer[start + 4..start + HEADER].copy_from_slice(&sum.to_le_bytes());
}

/// What stands at an offset.
#[derive(Debug, PartialEq)]
pub enum Next<'a> {
    /// A whole record, and the offset after it.
    Record(&'a [u8], usize),
    /// Nothing was written from here on.
    End,
    /// Not a whole record: too short, or its checksum is wrong.
    Bad,
}

/// Reads the record at `offset`.
pub fn next(data: &[u8], offset: usize) -> Next<'_> {
    let rest = &data[offset.min(data.len())..];
    // Files are made of zeros before they are written.
    if rest.iter().take(HEADER).all(|b| *b == 0) && rest.iter().all(|b| *b == 0) {
        return Next::End;
    }
    match whole(rest) {
        Some(payload) => Next::Record(payload, offset + HEADER + payload.len()),
        None => Next::Bad,
    }
}

/// Whether the bad record at `offset` can be a torn tail: then nothing readable follows it. Whole records behind it mean that
/// something in the middle was damaged. Its length is not believed: that may be the damaged part.
pub fn is_torn_tail(data: &[u8], offset: usize) -> bool {
    // Whoever is mistaken for damage (a torn batch with a record among its values) stops; whoever is mistaken for torn loses what follows.
    let last = data.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
    !(offset + 1..last).any(|at| whole(&data[at..]).is_some())
}

/// The payload of the record that `rest` begins with, if it is whole.
fn whole(rest: &[u8]) -> Option<&[u8]> {
    let (header, rest) = rest.split_at_checked(HEADER)?;
    let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let sum = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    // A run of zeros must not read as empty records.
    let payload = rest.get(..len).filter(|_| len > 0 && len <= PAYLOAD_MAX)?;
    (crc32fast::hash(payload) == sum || bug!("checksum_not_checked")).then_some(payload)
}

/// Reads the next record of a stream into `buffer`, its length and checksum in front; whether it is whole. If it is not, an empty buffer
/// means that the stream ended there.
pub fn read_next(from: &mut dyn Read, buffer: &mut Vec<u8>) -> io::Result<bool> {
    buffer.clear();
    from.take(HEADER as u64).read_to_end(buffer)?;
    let Some(len) = buffer.first_chunk::<4>().filter(|_| buffer.len() == HEADER) else { return Ok(false) };
    let len = u32::from_le_bytes(*len) as usize;
    if len == 0 || len > PAYLOAD_MAX {
        return Ok(false);
    }
    from.take(len as u64).read_to_end(buffer)?;
    Ok(whole(buffer).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(payloads: &[&[u8]]) -> Vec<u8> {
        let mut data = Vec::new();
        payloads.iter().for_each(|p| push(&mut data, p));
        data
    }

    fn count(data: &[u8]) -> (usize, usize) {
        let (mut at, mut count) = (0, 0);
        while let Next::Record(_, after) = next(data, at) {
            (at, count) = (after, count + 1);
        }
        (count, at)
    }

    #[test]
    fn a_tail_torn_at_any_byte_is_seen_as_one() {
        let data = file(&[b"one", b"twotwo", b"three"]);
        let second_ends = count(&data[..data.len() - 1]).1;
        for cut in second_ends + 1..data.len() {
            let torn = &data[..cut];
            assert_eq!(count(torn), (2, second_ends), "cut at {cut}");
            assert!(is_torn_tail(torn, second_ends), "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_in_the_middle_is_not_a_torn_tail() {
        let clean = file(&[b"one", b"twotwo", b"three"]);
        let first_ends = HEADER + 3;
        for at in first_ends..first_ends + HEADER + 6 {
            let mut data = clean.clone();
            data[at] ^= 0x10;
            assert_eq!(count(&data).0, 1, "flip at {at}");
            assert!(!is_torn_tail(&data, first_ends), "flip at {at}");
        }
    }

    /// As log segments are: zeros follow, so that a damaged length still points into the file.
    #[test]
    fn a_flipped_bit_anywhere_before_the_last_record_of_a_segment_is_damage() {
        let mut clean = file(&[b"one", b"twotwo", b"three"]);
        let (first_ends, last) = (HEADER + 3, 2 * HEADER + 9);
        clean.resize(5000, 0);
        for bit in first_ends * 8..last * 8 {
            let mut data = clean.clone();
            data[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(next(&data, first_ends), Next::Bad, "bit {bit}");
            assert!(!is_torn_tail(&data, first_ends), "bit {bit}");
        }
    }

    #[test]
    fn zeros_are_not_records() {
        assert_eq!(next(&[0; 64], 0), Next::End);
        let mut late = [0; 64];
        late[40] = 1;
        assert_eq!(next(&late, 0), Next::Bad);
        assert!(is_torn_tail(&late, 0));
    }
}
