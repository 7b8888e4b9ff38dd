//! Which files a dynamically linked program needs: its loader and, through all of them, its libraries (ELF-64, `PT_INTERP`,
//! `DT_NEEDED`, `DT_RUNPATH`). The search goes as ld.so(8) does it, without the cache.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result, on};

const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_INTERP: u64 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What one file asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    loader: Option<String>,
    libraries: Vec<String>,
    search: Vec<String>,
}

/// Loader and libraries of a program, all of them, as absolute paths. Empty for static programs and scripts.
pub fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let system = system_dirs();
    let mut found = BTreeSet::new();
    let mut todo = vec![program.to_owned()];
    while let Some(file) = todo.pop() {
        let bytes = fs::read(&file).context(on("read", &file))?;
        let needs = parse(&bytes).unwrap_or_default();
        if let Some(loader) = needs.loader {
            found.insert(PathBuf::from(loader));
        }
        let origin = file.parent().unwrap_or(Path::new("/")).to_string_lossy().into_owned();
        let own =
            needs.search.iter().map(|dir| PathBuf::from(dir.replace("$ORIGIN", &origin).replace("${ORIGIN}", &origin)));
        let dirs: Vec<PathBuf> = own.chain(system.iter().cloned()).collect();
        for library in needs.libraries {
            let place = dirs.iter().map(|dir| dir.join(&library)).find(|path| path.exists());
            let place = place.ok_or_else(|| Error::NotFound {
                kind: "library",
                name: format!("{library} (for {})", file.display()),
            })?;
            if found.insert(place.clone()) {
                todo.push(place);
            }
        }
    }
    Ok(found)
}

fn system_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    let configured = fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().flatten();
    for file in configured {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        dirs.extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from));
    }
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    for base in ["/lib", "/usr/lib"] {
        dirs.push(Path::new(base).join(&machine));
    }
    dirs.extend(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from));
    dirs
}

fn parse(bytes: &[u8]) -> Option<Needs> {
    if bytes.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: u64, width: usize| -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let slice = bytes.get(at..at.checked_add(width)?)?;
        Some(slice.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let text = |at: u64| -> Option<String> {
        let rest = bytes.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut needs = Needs::default();
    let mut segments = Vec::new();
    let mut dynamic = None;
    for index in 0..count {
        let at = table.checked_add(index * size)?;
        let (kind, offset, address, length) =
            (number(at, 4)?, number(at + 8, 8)?, number(at + 16, 8)?, number(at + 32, 8)?);
        match kind {
            PT_LOAD => segments.push((address, length, offset)),
            PT_DYNAMIC => dynamic = Some((offset, length)),
            PT_INTERP => needs.loader = text(offset),
            _ => {}
        }
    }
    let Some((offset, length)) = dynamic else { return Some(needs) };
    let entries: Vec<(u64, u64)> = (0..length / 16)
        .map_while(|index| Some((number(offset + index * 16, 8)?, number(offset + index * 16 + 8, 8)?)))
        .collect();
    let address = entries.iter().find(|(tag, _)| *tag == DT_STRTAB)?.1;
    let (start, _, file) =
        segments.iter().find(|(start, length, _)| (*start..start.saturating_add(*length)).contains(&address))?;
    let strings = address - start + file;
    for (tag, value) in entries {
        match tag {
            0 => break,
            DT_NEEDED => needs.libraries.push(text(strings.checked_add(value)?)?),
            DT_RPATH | DT_RUNPATH => {
                needs.search.extend(text(strings.checked_add(value)?)?.split(':').map(str::to_owned))
            }
            _ => {}
        }
    }
    Some(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_has_a_loader_and_libc() {
        let needs = libraries(&std::env::current_exe().unwrap()).unwrap();
        let names: Vec<_> = needs.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
        assert!(names.iter().any(|name| name.starts_with("ld-linux")), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("libc.so")), "{names:?}");
    }

    #[test]
    fn anything_else_needs_nothing() {
        assert_eq!(parse(b"#!/bin/sh\n"), None);
        assert_eq!(parse(b"\x7fELF\x02\x01"), None);
        let mut broken = fs::read(std::env::current_exe().unwrap()).unwrap();
        broken[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(parse(&broken), None);
    }
}
