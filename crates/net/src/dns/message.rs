//! DNS messages of sandboxes and resolvers. Nothing of either is passed on as it came: a query is read and a new one is
//! built, and so is its response. What does not belong to a question is left out.

use std::net::IpAddr;

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::message_builder::{AdditionalBuilder, PushError};
use domain::base::name::{Label, ParsedName, ToLabelIter};
use domain::base::opt::OptRecord;
use domain::base::wire::{Composer, ParseError};
use domain::base::{
    Header, Message, MessageBuilder, Name, ParsedRecord, Record, Rtype, StaticCompressor, ToName, Ttl,
};
use domain::rdata::AllRecordData;

/// Maximum size of a message over UDP, ours and theirs: it fits into one packet everywhere.
pub(super) const MAX_DATAGRAM: u16 = 1232;
/// Maximum size of a response for a client that names none.
const DEFAULT_DATAGRAM: u16 = 512;
/// Maximum number of aliases between a name and its records.
const MAX_ALIASES: usize = 16;

/// Maximum time that a response is stored, seconds; of one without records.
const MAX_LIFETIME: u32 = 300;
const MAX_NEGATIVE_LIFETIME: u32 = 60;

/// Types of records that sandboxes may ask for. Others have no use for programs, and would be a way to carry anything.
const TYPES: [Rtype; 28] = [
    Rtype::A,
    Rtype::NS,
    Rtype::CNAME,
    Rtype::SOA,
    Rtype::PTR,
    Rtype::MX,
    Rtype::TXT,
    Rtype::AAAA,
    Rtype::LOC,
    Rtype::SRV,
    Rtype::NAPTR,
    Rtype::DNAME,
    Rtype::DS,
    Rtype::SSHFP,
    Rtype::RRSIG,
    Rtype::NSEC,
    Rtype::DNSKEY,
    Rtype::NSEC3,
    Rtype::NSEC3PARAM,
    Rtype::TLSA,
    Rtype::SMIMEA,
    Rtype::CDS,
    Rtype::CDNSKEY,
    Rtype::OPENPGPKEY,
    Rtype::SVCB,
    Rtype::HTTPS,
    Rtype::URI,
    Rtype::CAA,
];

/// What a resolver is asked, and what a response is stored under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// In lower case.
    name: Name<Vec<u8>>,
    rtype: Rtype,
    /// The asker wants signatures.
    dnssec_ok: bool,
    /// The asker checks signatures itself.
    checking_disabled: bool,
}

impl Question {
    /// Makes a question for the addresses of a name.
    pub(super) fn for_addresses(name: &str, rtype: Rtype) -> Option<Self> {
        let name = Name::<Vec<u8>>::vec_from_str(name).ok()?.to_canonical_name();
        Some(Self { name, rtype, dnssec_ok: false, checking_disabled: false })
    }

    pub(super) fn rtype(&self) -> Rtype {
        self.rtype
    }

    /// The name as policies have it: in lower case and without the final dot. `None` for names that are no host names, in which a
    /// byte of a label may look like a dot.
    pub(super) fn host_name(&self) -> Option<String> {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let labels = self.name.iter_labels().filter(|label| !label.is_root());
        let plain = labels.map(|label: &Label| {
            let text = std::str::from_utf8(label.as_slice()).ok()?;
            text.as_bytes().iter().all(is_plain).then_some(text)
        });
        Some(plain.collect::<Option<Vec<_>>>()?.join("."))
    }

    /// Builds the query that a resolver is sent.
    pub(super) fn query(&self, id: u16) -> Vec<u8> {
        let built = || -> Result<Vec<u8>, PushError> {
            let mut builder = MessageBuilder::new_vec();
            let header = builder.header_mut();
            header.set_id(id);
            header.set_rd(true);
            header.set_cd(self.checking_disabled);
            header.set_ad(self.dnssec_ok);
            let mut builder = builder.question();
            builder.push((&self.name, self.rtype))?;
            let mut builder = builder.additional();
            push_opt(&mut builder, self.dnssec_ok)?;
            Ok(builder.finish())
        };
        built().expect("one question fits into any message")
    }

    /// Whether a message is the response to this question with this id.
    pub(super) fn is_answered_by(&self, message: &Message<[u8]>, id: u16) -> bool {
        let header = message.header();
        header.qr()
            && header.id() == id
            && header.opcode() == Opcode::QUERY
            && message.sole_question().is_ok_and(|question| {
                question.qtype() == self.rtype
                    && question.qclass() == Class::IN
                    && question.qname().name_eq(&self.name)
            })
    }
}

/// A query of a sandbox.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) question: Question,
    id: u16,
    recursion_desired: bool,
    /// The name as it was written: clients may compare it.
    name: Name<Vec<u8>>,
    /// Maximum size of the response over UDP, if the client names one.
    payload: Option<u16>,
}

/// Why a message of a sandbox gets no answer from a resolver.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// It is no query at all.
    Ignore,
    /// The response to send.
    Respond(Vec<u8>),
}

impl Query {
    /// Reads a message of a sandbox.
    pub(super) fn parse(packet: &[u8]) -> Result<Self, Rejection> {
        let message = Message::from_slice(packet).map_err(|_| Rejection::Ignore)?;
        let (header, counts) = (message.header(), message.header_counts());
        if header.qr() {
            return Err(Rejection::Ignore);
        }
        if header.opcode() != Opcode::QUERY {
            return Err(refuse(header.id(), header.opcode(), Rcode::NOTIMP));
        }
        // Any other record would be an update or a signature, or is there for no reason.
        if counts.qdcount() != 1 || counts.ancount() != 0 || counts.nscount() != 0 || counts.arcount() > 1 {
            return Err(refuse(header.id(), Opcode::QUERY, Rcode::FORMERR));
        }
        let malformed = |_: ParseError| refuse(header.id(), Opcode::QUERY, Rcode::FORMERR);
        let question = message.sole_question().map_err(malformed)?;
        message.additional().map_err(malformed)?;
        let opt = message.opt();
        let name: Name<Vec<u8>> = question.qname().to_name();
        let dnssec_ok = opt.as_ref().is_some_and(OptRecord::dnssec_ok);
        let query = Self {
            question: Question {
                name: name.to_canonical_name(),
                rtype: question.qtype(),
                dnssec_ok,
                checking_disabled: header.cd(),
            },
            id: header.id(),
            recursion_desired: header.rd(),
            name,
            payload: opt.map(|opt| opt.udp_payload_size()),
        };
        if question.qclass() != Class::IN {
            return Err(Rejection::Respond(query.error(Rcode::REFUSED)));
        }
        if !TYPES.contains(&question.qtype()) {
            return Err(Rejection::Respond(query.error(Rcode::NOTIMP)));
        }
        Ok(query)
    }

    /// Maximum size of the response over UDP.
    pub(super) fn datagram_size(&self) -> usize {
        usize::from(self.payload.unwrap_or(DEFAULT_DATAGRAM).clamp(DEFAULT_DATAGRAM, MAX_DATAGRAM))
    }

    /// Builds a response without records.
    pub(super) fn error(&self, code: Rcode) -> Vec<u8> {
        self.empty(code, false)
    }

    fn empty(&self, code: Rcode, truncated: bool) -> Vec<u8> {
        let change = |header: &mut Header| {
            header.set_rcode(code);
            header.set_tc(truncated);
        };
        self.build(change, &Records::default(), 0).expect("a question fits into any message")
    }

    /// Builds the response to this query out of the one of a resolver, `age` seconds after it arrived. What does not fit into
    /// `limit` bytes is left out and marked as such.
    ///
    /// # Errors
    /// The resolver's message is malformed.
    pub(super) fn respond(
        &self,
        answer: &Message<[u8]>,
        age: u32,
        limit: usize,
    ) -> Result<Vec<u8>, ParseError> {
        let records = Records::of(answer, &self.question)?;
        let header = answer.header();
        let change = |own: &mut Header| {
            own.set_rcode(header.rcode());
            own.set_ad(header.ad());
        };
        match self.build(change, &records, age) {
            Ok(whole) if whole.len() <= limit => Ok(whole),
            _ => Ok(self.empty(header.rcode(), true)),
        }
    }

    fn build(
        &self,
        change: impl FnOnce(&mut Header),
        records: &Records<'_>,
        age: u32,
    ) -> Result<Vec<u8>, PushError> {
        let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new()))?;
        let header = builder.header_mut();
        header.set_id(self.id);
        header.set_qr(true);
        header.set_rd(self.recursion_desired);
        header.set_ra(true);
        header.set_cd(self.question.checking_disabled);
        change(header);
        let mut builder = builder.question();
        builder.push((&self.name, self.question.rtype))?;
        let mut builder = builder.answer();
        for record in &records.answers {
            builder.push(aged(record, age))?;
        }
        let mut builder = builder.authority();
        for record in &records.authorities {
            builder.push(aged(record, age))?;
        }
        let mut builder = builder.additional();
        if self.payload.is_some() {
            push_opt(&mut builder, self.question.dnssec_ok)?;
        }
        Ok(builder.finish().into_target())
    }
}

fn refuse(id: u16, opcode: Opcode, code: Rcode) -> Rejection {
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(id);
    header.set_qr(true);
    header.set_opcode(opcode);
    header.set_rcode(code);
    Rejection::Respond(builder.finish())
}

fn push_opt<T: Composer>(builder: &mut AdditionalBuilder<T>, dnssec_ok: bool) -> Result<(), PushError> {
    builder.opt(|opt| {
        opt.set_udp_payload_size(MAX_DATAGRAM);
        opt.set_dnssec_ok(dnssec_ok);
        Ok(())
    })
}

type Data<'a> = AllRecordData<&'a [u8], ParsedName<&'a [u8]>>;
type AnyRecord<'a> = Record<ParsedName<&'a [u8]>, Data<'a>>;

/// A record with what is left of its lifetime after `age` seconds.
fn aged<'r, 'a>(record: &'r AnyRecord<'a>, age: u32) -> (&'r ParsedName<&'a [u8]>, Class, Ttl, &'r Data<'a>) {
    let ttl = record.ttl().saturating_sub(Ttl::from_secs(age));
    (record.owner(), record.class(), ttl, record.data())
}

/// The records of a resolver's response that belong to a question.
#[derive(Default)]
struct Records<'a> {
    /// Of the name and its aliases.
    answers: Vec<AnyRecord<'a>>,
    /// What proves that there is nothing, and for how long.
    authorities: Vec<AnyRecord<'a>>,
}

impl<'a> Records<'a> {
    fn of(message: &'a Message<[u8]>, question: &Question) -> Result<Self, ParseError> {
        let section = message.answer()?;
        let parse = |record: Result<ParsedRecord<'a, [u8]>, ParseError>| record?.into_any_record();
        let answers = section.map(parse).collect::<Result<Vec<AnyRecord<'a>>, _>>()?;
        let authorities = message.authority()?.map(parse).collect::<Result<Vec<AnyRecord<'a>>, _>>()?;
        let names = names(&question.name, &answers);
        let belongs = |record: &AnyRecord<'a>| {
            let is_of_a_name = names.iter().any(|name| name.name_eq(record.owner()));
            let is_parent =
                record.rtype() == Rtype::DNAME && names.iter().any(|name| name.ends_with(record.owner()));
            record.class() == Class::IN && (is_of_a_name || is_parent) && !is_meta(record.rtype())
        };
        let is_proof = |record: &AnyRecord<'a>| {
            let types = [Rtype::SOA, Rtype::NSEC, Rtype::NSEC3, Rtype::RRSIG];
            record.class() == Class::IN && types.contains(&record.rtype())
        };
        Ok(Self {
            answers: answers.into_iter().filter(belongs).collect(),
            authorities: authorities.into_iter().filter(is_proof).collect(),
        })
    }
}

/// Whether a type is of a message rather than of a name.
fn is_meta(rtype: Rtype) -> bool {
    matches!(rtype, Rtype::OPT | Rtype::TSIG)
}

/// Returns a name and the names that it is an alias of.
fn names(first: &Name<Vec<u8>>, records: &[AnyRecord<'_>]) -> Vec<Name<Vec<u8>>> {
    let mut names = vec![first.clone()];
    while names.len() <= MAX_ALIASES {
        let next = records.iter().find_map(|record| match record.data() {
            AllRecordData::Cname(alias) if names.last().is_some_and(|name| name.name_eq(record.owner())) => {
                Some(alias.cname().to_canonical_name())
            }
            _ => None,
        });
        match next {
            Some(name) if !names.contains(&name) => names.push(name),
            _ => break,
        }
    }
    names
}

/// Returns the addresses in a response to a question.
pub(super) fn addresses(answer: &Message<[u8]>, question: &Question) -> Vec<IpAddr> {
    let Ok(records) = Records::of(answer, question) else { return Vec::new() };
    let address = |record: &AnyRecord<'_>| match record.data() {
        AllRecordData::A(a) => Some(IpAddr::V4(a.addr())),
        AllRecordData::Aaaa(aaaa) => Some(IpAddr::V6(aaaa.addr())),
        _ => None,
    };
    records.answers.iter().filter_map(address).collect()
}

/// Returns for how many seconds a response is valid; 0 if it must not be stored.
pub(super) fn lifetime(answer: &Message<[u8]>, question: &Question) -> u32 {
    let Ok(records) = Records::of(answer, question) else { return 0 };
    let is_positive = answer.header().rcode() == Rcode::NOERROR && !records.answers.is_empty();
    if is_positive {
        let ttls = records.answers.iter().map(|record| record.ttl().as_secs());
        return ttls.min().unwrap_or(0).min(MAX_LIFETIME);
    }
    if !matches!(answer.header().rcode(), Rcode::NOERROR | Rcode::NXDOMAIN) {
        return 0;
    }
    let ttls = records.authorities.iter().filter_map(|record| match record.data() {
        AllRecordData::Soa(soa) => Some(soa.minimum().as_secs().min(record.ttl().as_secs())),
        _ => None,
    });
    ttls.min().unwrap_or(0).min(MAX_NEGATIVE_LIFETIME)
}
