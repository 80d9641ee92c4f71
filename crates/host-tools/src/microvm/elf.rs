//! Reads dependencies out of ELF files: the libraries of a program, the modules of a kernel module.
//! The files are Debian's, so they are trusted and read whole. Names are returned as they are written, not resolved to files.

use elf::ElfBytes;
use elf::abi::DT_NEEDED;
use elf::endian::LittleEndian;

/// Returns the libraries that a program or library depends on directly (`DT_NEEDED`).
pub(super) fn needed_libraries(content: &[u8]) -> Result<Vec<String>, elf::ParseError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(content)?;
    let common = file.find_common_data()?;
    let (Some(dynamic), Some(names)) = (common.dynamic, common.dynsyms_strs) else { return Ok(Vec::new()) };
    let needed = dynamic.iter().filter(|entry| entry.d_tag == DT_NEEDED);
    needed
        .map(|entry| Ok(names.get(usize::try_from(entry.d_val()).unwrap_or(usize::MAX))?.to_owned()))
        .collect()
}

/// Returns the modules that a kernel module depends on (`depends=` in `.modinfo`).
pub(super) fn needed_modules(content: &[u8]) -> Result<Vec<String>, elf::ParseError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(content)?;
    let Some(header) = file.section_header_by_name(".modinfo")? else { return Ok(Vec::new()) };
    let (notes, _) = file.section_data(&header)?;
    let depends = notes.split(|byte| *byte == 0).find_map(|note| note.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(depends.unwrap_or_default()).into_owned();
    Ok(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_of_a_program() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let libraries = needed_libraries(&own).unwrap();
        assert!(libraries.iter().any(|name| name.starts_with("libc.so")), "{libraries:?}");
        assert_eq!(needed_modules(&own).unwrap(), Vec::<String>::new(), "a program has no modules");
        assert!(needed_libraries(b"no ELF file").is_err());
    }
}
