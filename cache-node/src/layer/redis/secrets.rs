//! What comes from files that somebody else may replace at any time: user, password, certificates.

use std::{io, path::Path};

use redis::{ClientTlsConfig, TlsCertificates};

use super::{RedisOptions, TlsOptions};

/// Longest file that is read; certificates of a large bundle have some 300 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The content of the files at one moment.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secrets {
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) tls: Option<TlsFiles>,
}

/// Certificates, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct TlsFiles {
    authority: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

// === impl Secrets ===

impl Secrets {
    /// Reads the files that the options name.
    ///
    /// # Errors
    /// Which file could not be read, and why.
    pub(super) async fn read(options: &RedisOptions) -> Result<Self, String> {
        Ok(Self {
            user: line(options.username_file.as_deref()).await?,
            password: line(options.password_file.as_deref()).await?,
            tls: match &options.tls {
                Some(tls) => Some(TlsFiles::read(tls).await?),
                None => None,
            },
        })
    }
}

// === impl TlsFiles ===

impl TlsFiles {
    async fn read(options: &TlsOptions) -> Result<Self, String> {
        let TlsOptions { ca_file, client_files, server_name: _ } = options;
        let authority = match ca_file {
            Some(path) => Some(bytes(path).await?),
            None => None,
        };
        let client = match client_files {
            Some((certificate, key)) => Some((bytes(certificate).await?, bytes(key).await?)),
            None => None,
        };
        Ok(Self { authority, client })
    }

    /// In the form that the client library wants.
    pub(super) fn certificates(&self) -> TlsCertificates {
        let client = self.client.clone();
        TlsCertificates {
            client_tls: client.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key }),
            root_cert: self.authority.clone(),
        }
    }
}

/// The text of a file without the line end that editors leave; none if it is empty, as for the default user.
async fn line(path: Option<&Path>) -> Result<Option<String>, String> {
    let Some(path) = path else { return Ok(None) };
    let text = String::from_utf8(bytes(path).await?).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()).filter(|text| !text.is_empty()))
}

async fn bytes(path: &Path) -> Result<Vec<u8>, String> {
    let read = async {
        if tokio::fs::metadata(path).await?.len() > FILE_BYTES_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        tokio::fs::read(path).await
    };
    read.await.map_err(|error| format!("reading {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::tempdir;

    use super::*;
    use crate::layer::redis::tests::options;

    #[tokio::test]
    async fn line_ends_do_not_belong_to_a_password_and_spaces_do() {
        let folder = tempdir().unwrap();
        let file = folder.path().join("password");
        let options = RedisOptions { password_file: Some(file.clone()), ..options("127.0.0.1:1") };
        for (text, password) in [("abc\r\n", Some("abc")), (" a b \n", Some(" a b ")), ("\n", None), ("", None)] {
            fs::write(&file, text).unwrap();
            assert_eq!(Secrets::read(&options).await.ok().unwrap().password.as_deref(), password, "{text:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let options = RedisOptions { username_file: Some("/nonexistent/user".into()), ..options("127.0.0.1:1") };
        let error = Secrets::read(&options).await.err().unwrap();
        assert!(error.contains("/nonexistent/user"), "{error}");
    }

    #[tokio::test]
    async fn a_changed_file_makes_other_secrets() {
        let folder = tempdir().unwrap();
        let file = folder.path().join("password");
        let options = RedisOptions { password_file: Some(file.clone()), ..options("127.0.0.1:1") };
        fs::write(&file, "old").unwrap();
        let old = Secrets::read(&options).await.ok().unwrap();
        assert!(old == Secrets::read(&options).await.ok().unwrap());
        fs::write(&file, "new").unwrap();
        assert!(old != Secrets::read(&options).await.ok().unwrap());
    }
}
