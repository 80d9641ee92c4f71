//! Writes a template's archive to any writer, without seeking.
//! Each layer is compressed into a staging file first, because a tar has lengths before contents. The index is written last, so a
//! truncated archive is not mistaken for a complete one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use layers::{LayerDigest, LayerStore, Staging};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::write::write_layer;
use super::{ARTIFACT, CONFIG, DIFF_ID, LAYER, LAYER_DIGEST};
use crate::OciError;
use crate::archive::blob_name;
use crate::digest::Digest;
use crate::media::{Descriptor, OCI_INDEX, OCI_MANIFEST};

/// Compression level of zstd.
const LEVEL: i32 = 3;

/// Writes a template of these layers (uppermost first) with a configuration (JSON, not interpreted here). Returns
/// the manifest's digest, which is the same for the same template. Blocks.
///
/// # Errors
/// A layer is not in the store or has a file that cannot be represented, or the writer fails.
pub fn export_template(
    store: &LayerStore,
    layers: &[LayerDigest],
    config: &[u8],
    to: impl Write,
) -> Result<Digest, OciError> {
    let mut tar = Builder::new(to);
    append(&mut tar, "oci-layout", 30, &br#"{"imageLayoutVersion":"1.0.0"}"#[..])?;
    let mut descriptors = Vec::new();
    // Manifests list the lowermost layer first.
    for layer in layers.iter().rev() {
        let packed = pack(store, layer)?;
        let path = packed.file.path();
        let file = File::open(&path).map_err(OciError::at(&path))?;
        let descriptor = packed.descriptor;
        // A layer that is there twice is written once.
        if !descriptors.iter().any(|known: &Descriptor| known.digest == descriptor.digest) {
            append(&mut tar, &blob_name(&descriptor.digest), descriptor.size, file)?;
        }
        descriptors.push(descriptor);
    }
    let config_descriptor = descriptor(CONFIG, config);
    append(&mut tar, &blob_name(&config_descriptor.digest), config_descriptor.size, config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": config_descriptor,
        "layers": descriptors,
    });
    let manifest = manifest.to_string();
    let mut manifest_descriptor = descriptor(OCI_MANIFEST, manifest.as_bytes());
    manifest_descriptor.artifact_type = Some(ARTIFACT.to_owned());
    append(&mut tar, &blob_name(&manifest_descriptor.digest), manifest_descriptor.size, manifest.as_bytes())?;
    let index =
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [manifest_descriptor] }).to_string();
    append(&mut tar, "index.json", index.len() as u64, index.as_bytes())?;
    tar.into_inner().and_then(|mut to| to.flush()).map_err(unwritable)?;
    Ok(manifest_descriptor.digest)
}

struct Packed {
    file: Staging,
    descriptor: Descriptor,
}

fn pack(store: &LayerStore, layer: &LayerDigest) -> Result<Packed, OciError> {
    let staging = store.stage()?;
    let path = staging.path();
    let file = File::create_new(&path).map_err(OciError::at(&path))?;
    let compressed = HashWriter::new(BufWriter::with_capacity(256 << 10, file));
    let encoder = zstd::Encoder::new(compressed, LEVEL).map_err(OciError::at(&path))?;
    let mut plain = HashWriter::new(encoder);
    write_layer(layer, &store.path(layer), &mut plain)?;
    let (encoder, diff_id, _) = plain.finish();
    let compressed = encoder.finish().map_err(OciError::at(&path))?;
    let (mut file, digest, size) = compressed.finish();
    file.flush().map_err(OciError::at(&path))?;
    let annotations = [(LAYER_DIGEST, layer.to_string()), (DIFF_ID, diff_id.to_string())];
    let annotations = annotations.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let descriptor = Descriptor {
        media_type: LAYER.to_owned(),
        artifact_type: None,
        digest,
        size,
        platform: None,
        annotations,
    };
    Ok(Packed { file: staging, descriptor })
}

fn descriptor(media_type: &str, content: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        artifact_type: None,
        digest: Digest::of(content),
        size: content.len() as u64,
        platform: None,
        annotations: BTreeMap::new(),
    }
}

fn append(tar: &mut Builder<impl Write>, name: &str, size: u64, content: impl Read) -> Result<(), OciError> {
    let mut header = Header::new_ustar();
    header.set_path(name).map_err(unwritable)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    tar.append(&header, content).map_err(unwritable)
}

fn unwritable(error: io::Error) -> OciError {
    OciError::at(std::path::Path::new("the template's archive"))(error)
}

/// A writer that hashes and counts all bytes that are written through it.
struct HashWriter<W> {
    inner: W,
    hash: Sha256,
    count: u64,
}

impl<W: Write> HashWriter<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), count: 0 }
    }

    fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest::from_hash(self.hash), self.count)
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
