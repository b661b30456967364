//! Attributes as they are written: `#[message(…)]`, `#[event(…)]` and those on handlers.

use proc_macro2::Span;
use syn::{
    Attribute, DeriveInput, Error, Expr, Ident, LitStr, Member, Meta, Result, Token, Type,
    ext::IdentExt,
    parse::{Parse, ParseStream},
    spanned::Spanned,
};

use crate::valid;

/// `#[message(…)]`.
pub(crate) struct Message {
    pub(crate) pattern: LitStr,
    pub(crate) reply: Reply,
    pub(crate) idempotent: bool,
}

/// `reply = Type` or `stream = Type`.
pub(crate) enum Reply {
    Single(Type),
    Many(Type),
}

/// `#[event(…)]`.
pub(crate) struct Event {
    pub(crate) pattern: LitStr,
    pub(crate) key: Option<Member>,
    pub(crate) best_effort: bool,
}

/// One attribute that makes a method a handler, or wraps it.
pub(crate) enum Handler {
    Pattern(Pattern),
    Layer(Box<Expr>),
}

/// `#[message_pattern]` or `#[event_pattern]`.
pub(crate) struct Pattern {
    pub(crate) kind: Kind,
    /// The literal pattern; without it the contract has it.
    pub(crate) literal: Option<LitStr>,
    /// How many may be in work at once.
    pub(crate) max_in_flight: Option<Expr>,
    /// Where the attribute is.
    pub(crate) span: Span,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Message,
    Event,
}

impl Message {
    const KEYS: [&str; 4] = ["pattern", "reply", "stream", "idempotent"];

    pub(crate) fn of(input: &DeriveInput) -> Result<Self> {
        let (mut pattern, mut idempotent) = (None, None);
        let (mut reply, mut stream) = (None, None);
        let attribute = read(input, "message", |key, input| {
            match key.to_string().as_str() {
                "pattern" => set(&mut pattern, key, value(key, input, "\"service.verb\"")?),
                "reply" => set(&mut reply, key, value(key, input, "Type")?),
                "stream" => set(&mut stream, key, value(key, input, "Type")?),
                "idempotent" => set(&mut idempotent, key, flag(key, input)?),
                "key" | "best_effort" => Err(Error::new(
                    key.span(),
                    format!("`{key}` is for events, in `#[event(…)]`"),
                )),
                _ => Err(unknown(key, &Self::KEYS)),
            }
        })?;
        let Some(attribute) = attribute else {
            return Err(Error::new(
                input.ident.span(),
                format!(
                    "`{}` says no pattern and no reply: \
                     add `#[message(pattern = \"service.verb\", reply = Type)]`",
                    input.ident
                ),
            ));
        };
        let Some(pattern) = pattern else {
            return Err(Error::new(
                attribute.path().span(),
                "no pattern: add `pattern = \"service.verb\"`",
            ));
        };
        let reply = match (reply, stream) {
            (Some(reply), None) => Reply::Single(reply),
            (None, Some(stream)) => Reply::Many(stream),
            (None, None) => {
                return Err(Error::new(
                    attribute.path().span(),
                    "no reply: add `reply = Type`, or `stream = Type` for many; \
                     what nobody answers is an event",
                ));
            }
            (Some(_), Some(stream)) => {
                return Err(Error::new(
                    stream.span(),
                    "both `reply` and `stream`: keep `reply` for one value or `stream` for many",
                ));
            }
        };
        valid::contract_pattern(&pattern)?;
        Ok(Self {
            pattern,
            reply,
            idempotent: idempotent.is_some(),
        })
    }
}

impl Event {
    const KEYS: [&str; 3] = ["pattern", "key", "best_effort"];

    pub(crate) fn of(input: &DeriveInput) -> Result<Self> {
        let (mut pattern, mut key_field, mut best_effort) = (None, None, None);
        let attribute = read(input, "event", |key, input| {
            match key.to_string().as_str() {
                "pattern" => set(&mut pattern, key, value(key, input, "\"noun.happened\"")?),
                "key" => set(&mut key_field, key, value(key, input, "field")?),
                "best_effort" => set(&mut best_effort, key, flag(key, input)?),
                "reply" | "stream" | "idempotent" => Err(Error::new(
                    key.span(),
                    format!("`{key}` is for messages, in `#[message(…)]`: nobody answers an event"),
                )),
                _ => Err(unknown(key, &Self::KEYS)),
            }
        })?;
        let Some(attribute) = attribute else {
            return Err(Error::new(
                input.ident.span(),
                format!(
                    "`{}` says no pattern: add `#[event(pattern = \"noun.happened\")]`",
                    input.ident
                ),
            ));
        };
        let Some(pattern) = pattern else {
            return Err(Error::new(
                attribute.path().span(),
                "no pattern: add `pattern = \"noun.happened\"`",
            ));
        };
        valid::contract_pattern(&pattern)?;
        Ok(Self {
            pattern,
            key: key_field,
            best_effort: best_effort.is_some(),
        })
    }
}

impl Handler {
    /// Reads an attribute of a method or of the whole block, if it is one of ours.
    pub(crate) fn of(attribute: &Attribute) -> Option<Result<Self>> {
        let path = attribute.path();
        if path.is_ident("message_pattern") {
            Some(Pattern::of(attribute, Kind::Message).map(Self::Pattern))
        } else if path.is_ident("event_pattern") {
            Some(Pattern::of(attribute, Kind::Event).map(Self::Pattern))
        } else if path.is_ident("layer") {
            Some(layer(attribute).map(|layer| Self::Layer(Box::new(layer))))
        } else {
            None
        }
    }
}

impl Pattern {
    fn of(attribute: &Attribute, kind: Kind) -> Result<Self> {
        let (name, example) = (kind.attribute(), kind.example());
        let (literal, max_in_flight) = match &attribute.meta {
            Meta::Path(_) => (None, None),
            Meta::List(list) => {
                list.parse_args_with(|input: ParseStream<'_>| Self::arguments(input, kind))?
            }
            Meta::NameValue(pair) => {
                return Err(Error::new(
                    pair.span(),
                    format!("write the pattern in parentheses: `#[{name}(\"{example}\")]`"),
                ));
            }
        };
        Ok(Self {
            kind,
            literal,
            max_in_flight,
            span: attribute.path().span(),
        })
    }

    /// A literal, options, or both.
    fn arguments(input: ParseStream<'_>, kind: Kind) -> Result<(Option<LitStr>, Option<Expr>)> {
        let mut literal = None;
        if input.peek(LitStr) {
            let pattern = input.parse()?;
            valid::literal_pattern(&pattern)?;
            literal = Some(pattern);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        } else if !(input.peek(Ident::peek_any) && input.peek2(Token![=])) {
            let (name, example) = (kind.attribute(), kind.example());
            return Err(Error::new(
                input.span(),
                format!(
                    "expected a pattern in quotes, `#[{name}(\"{example}\")]`, \
                     or `#[{name}]` for that of the first argument's contract"
                ),
            ));
        }
        let mut most = None;
        keys(input, |key, input| match key.to_string().as_str() {
            "max_in_flight" => set(&mut most, key, value(key, input, "4")?),
            _ => Err(unknown(key, &["max_in_flight"])),
        })?;
        if let Some(most) = &most {
            valid::at_least_one(most)?;
        }
        Ok((literal, most))
    }
}

impl Kind {
    pub(crate) fn attribute(self) -> &'static str {
        match self {
            Self::Message => "message_pattern",
            Self::Event => "event_pattern",
        }
    }

    pub(crate) fn example(self) -> &'static str {
        match self {
            Self::Message => "service.verb",
            Self::Event => "noun.happened",
        }
    }
}

fn layer(attribute: &Attribute) -> Result<Expr> {
    attribute.parse_args().map_err(|error| {
        Error::new(
            error.span(),
            "expected one layer, such as `#[layer(guard(signed_in))]`",
        )
    })
}

/// Hands each `key` of `#[name(key, key = value)]` to `each`, which reads what follows it.
fn read(
    input: &DeriveInput,
    name: &str,
    mut each: impl FnMut(&Ident, ParseStream<'_>) -> Result<()>,
) -> Result<Option<Attribute>> {
    let mut ours = input
        .attrs
        .iter()
        .filter(|attribute| attribute.path().is_ident(name));
    let Some(attribute) = ours.next() else {
        return Ok(None);
    };
    if let Some(second) = ours.next() {
        return Err(Error::new(
            second.path().span(),
            format!("a second `#[{name}(…)]`: join them"),
        ));
    }
    attribute.parse_args_with(|input: ParseStream<'_>| keys(input, &mut each))?;
    Ok(Some(attribute.clone()))
}

/// Hands each `key` of `key, key = value` to `each`, which reads what follows it.
fn keys(
    input: ParseStream<'_>,
    mut each: impl FnMut(&Ident, ParseStream<'_>) -> Result<()>,
) -> Result<()> {
    while !input.is_empty() {
        let key = input.call(Ident::parse_any)?;
        each(&key, input)?;
        if !input.is_empty() {
            input.parse::<Token![,]>()?;
        }
    }
    Ok(())
}

fn set<T>(slot: &mut Option<T>, key: &Ident, value: T) -> Result<()> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Error::new(key.span(), format!("`{key}` is given twice"))),
    }
}

fn value<T: Parse>(key: &Ident, input: ParseStream<'_>, example: &str) -> Result<T> {
    let wanted = |span: Span| Error::new(span, format!("expected `{key} = {example}`"));
    if !input.peek(Token![=]) {
        return Err(wanted(key.span()));
    }
    input.parse::<Token![=]>()?;
    input.parse().map_err(|error| wanted(error.span()))
}

fn flag(key: &Ident, input: ParseStream<'_>) -> Result<()> {
    if input.is_empty() || input.peek(Token![,]) {
        return Ok(());
    }
    Err(input.error(format!("`{key}` takes no value: its presence says it")))
}

fn unknown(key: &Ident, known: &[&str]) -> Error {
    let name = key.to_string();
    let near = known.iter().find(|known| valid::alike(&name, known));
    let text = match near {
        Some(near) => format!("unknown `{name}`, did you mean `{near}`?"),
        None => format!("unknown `{name}`, expected one of `{}`", known.join("`, `")),
    };
    Error::new(key.span(), text)
}
