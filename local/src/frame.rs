//! A value on a stream: its length in four bytes, big-endian, then JSON.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longer frames are a fault of the other side.
const LENGTH_MAX: usize = 4 << 20;

fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(value)?;
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend(body);
    Ok(frame)
}

fn length_of(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(header) as usize;
    if length > LENGTH_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes, more than {LENGTH_MAX}"),
        ));
    }
    Ok(length)
}

pub fn write(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    out.write_all(&encode(value)?)
}

pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let mut body = vec![0; length_of(header)?];
    from.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

pub async fn write_async(out: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> io::Result<()> {
    out.write_all(&encode(value)?).await
}

pub async fn read_async<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let mut header = [0; 4];
    from.read_exact(&mut header).await?;
    let mut body = vec![0; length_of(header)?];
    from.read_exact(&mut body).await?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_there_and_back() {
        let mut bytes = Vec::new();
        write(&mut bytes, &"a value").unwrap();
        assert_eq!(read::<String>(&mut bytes.as_slice()).unwrap(), "a value");
        assert!(read::<String>(&mut &bytes[..6]).is_err());
        assert!(read::<String>(&mut &[255u8, 255, 255, 255][..]).is_err());
    }
}
