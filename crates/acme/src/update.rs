//! Updates of records at a name server (RFC 2136), signed with a shared key (TSIG, RFC 8945).

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};
use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::message_builder::PushError;
use domain::base::rdata::UnknownRecordData;
use domain::base::{Message, MessageBuilder, Name, Rtype, StaticCompressor, ToName};
use domain::rdata::Txt;
use domain::rdata::tsig::Time48;
use domain::tsig::{Algorithm, ClientTransaction, Key, KeyName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Maximum time of one exchange with the name server.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long resolvers keep the record, seconds.
const LIFETIME: u32 = 60;

/// A key that the name server knows, written as for `nsupdate -y`: `hmac-sha256:name:base64`.
#[derive(Debug, Clone)]
pub struct TsigKey(Arc<Key>);

impl FromStr for TsigKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write the key as hmac-sha256:<name>:<base64>";
        let mut parts = text.trim().splitn(3, ':');
        let (Some(algorithm), Some(name), Some(secret)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(FORM.to_owned());
        };
        let algorithm: Algorithm = algorithm.parse().map_err(|_| FORM.to_owned())?;
        let name = KeyName::from_str(name).map_err(|error| error.to_string())?;
        let secret = BASE64_STANDARD.decode(secret).map_err(|error| error.to_string())?;
        Key::new(algorithm, &secret, name, None, None)
            .map(|key| Self(Arc::new(key)))
            .map_err(|error| error.to_string())
    }
}

/// A name server that takes updates.
#[derive(Debug, Clone)]
pub struct NameServer {
    /// Its address.
    pub address: SocketAddr,
    /// The key that updates are signed with, unless it takes them by address.
    pub key: Option<TsigKey>,
}

type Builder = MessageBuilder<StaticCompressor<Vec<u8>>>;

impl NameServer {
    /// Replaces the TXT records of a name. Without values there are none afterwards.
    ///
    /// # Errors
    /// The server cannot be reached, has no zone for the name, or refuses the update.
    pub(crate) async fn set(&self, record: &str, values: &[String]) -> Result<(), String> {
        let name = Name::<Vec<u8>>::vec_from_str(record).map_err(text)?;
        let zone = self.zone(&name).await?;
        let build = || -> Result<_, PushError> {
            let mut builder = builder();
            builder.header_mut().set_id(random_id());
            builder.header_mut().set_opcode(Opcode::UPDATE);
            let mut zones = builder.question();
            zones.push((&zone, Rtype::SOA, Class::IN))?;
            // The records to change are in the third section.
            let mut changes = zones.answer().authority();
            let nothing =
                UnknownRecordData::from_octets(Rtype::TXT, Vec::new()).map_err(|_| PushError::ShortBuf)?;
            changes.push((&name, Class::ANY, 0, nothing))?;
            for value in values {
                let value =
                    Txt::<Vec<u8>>::build_from_slice(value.as_bytes()).map_err(|_| PushError::ShortBuf)?;
                changes.push((&name, Class::IN, LIFETIME, value))?;
            }
            let mut message = changes.additional();
            let signed = match &self.key {
                Some(key) => {
                    Some(ClientTransaction::request(Arc::clone(&key.0), &mut message, Time48::now())?)
                }
                None => None,
            };
            Ok((message.finish().into_target(), signed))
        };
        let (message, signed) = build().map_err(text)?;
        let mut answer = self.exchange(&message).await?;
        if let Some(signed) = signed
            && answer.header().rcode() == Rcode::NOERROR
        {
            signed.answer(&mut answer, Time48::now()).map_err(text)?;
        }
        match answer.header().rcode() {
            Rcode::NOERROR => Ok(()),
            code => Err(format!("{} refused the update with {code}", self.address)),
        }
    }

    /// Asks the server for the zone that a name is in.
    async fn zone(&self, name: &Name<Vec<u8>>) -> Result<Name<Vec<u8>>, String> {
        let build = || -> Result<Vec<u8>, PushError> {
            let mut builder = builder();
            builder.header_mut().set_id(random_id());
            let mut question = builder.question();
            question.push((name, Rtype::SOA))?;
            Ok(question.finish().into_target())
        };
        let answer = self.exchange(&build().map_err(text)?).await?;
        let records = answer.answer().map_err(text)?.chain(answer.authority().map_err(text)?);
        let authority = records.flatten().find(|record| record.rtype() == Rtype::SOA);
        let owner = authority.map(|record| record.owner().to_name::<Vec<u8>>());
        owner.ok_or_else(|| format!("{} has no zone for {name}: {}", self.address, answer.header().rcode()))
    }

    /// Sends a message over TCP and returns the answer.
    async fn exchange(&self, message: &[u8]) -> Result<Message<Vec<u8>>, String> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            let length = u16::try_from(message.len()).map_err(io::Error::other)?;
            stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await?;
            let mut answer = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        let answer = match tokio::time::timeout(TIMEOUT, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(format!("{}: {error}", self.address)),
            Err(_) => return Err(format!("{} did not answer in {} s", self.address, TIMEOUT.as_secs())),
        };
        let answer =
            Message::from_octets(answer).map_err(|_| format!("{}: a malformed answer", self.address))?;
        if !answer.header().qr() || answer.header().id().to_be_bytes() != message[..2] {
            return Err(format!("{}: an answer to something else", self.address));
        }
        Ok(answer)
    }
}

fn builder() -> Builder {
    MessageBuilder::from_target(StaticCompressor::new(Vec::new()))
        .expect("an empty vector has room for a header")
}

fn random_id() -> u16 {
    getrandom::u32().map_or(0, |random| (random >> 16) as u16)
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_for_nsupdate() {
        assert!(
            "hmac-sha256:cofferdam:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n".parse::<TsigKey>().is_ok()
        );
        for text in ["", "cofferdam:MDEy", "md5:cofferdam:MDEy", "hmac-sha256:cofferdam:not base64"] {
            assert!(text.parse::<TsigKey>().is_err(), "{text}");
        }
    }
}
