//! What a pattern, a contract and a handler must look like.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{
    Data, DeriveInput, Error, Expr, ExprLit, FnArg, GenericArgument, GenericParam, Lit, LitStr,
    Member, PathArguments, Result, ReturnType, Signature, Type, spanned::Spanned,
};

use crate::{
    attr::{Kind, Pattern},
    controller::{self, Controller, Handler},
};

/// How many extractors `nestling` reads for a handler, beside its contract.
const EXTRACTORS: usize = 4;

/// What means "any" in the names of some broker.
const WILDCARDS: [char; 4] = ['*', '>', '#', '+'];

/// A contract's pattern: at least two lower-case words joined by dots.
pub(crate) fn contract_pattern(pattern: &LitStr) -> Result<()> {
    let text = pattern.value();
    let words = || text.split('.');
    let problem = if text.is_empty() {
        "it is empty".to_owned()
    } else if text.contains(char::is_whitespace) {
        "it has white space".to_owned()
    } else if text.contains(WILDCARDS) {
        "it has a wildcard".to_owned()
    } else if words().any(str::is_empty) {
        "it has a dot too many".to_owned()
    } else if let Some(word) = words().find(|word| !is_word(word)) {
        format!("`{word}` is not only lower-case letters, digits and `_`, a letter first")
    } else if words().count() < 2 {
        "it is a single word".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(
        pattern.span(),
        format!("a pattern is lower-case words joined by dots, such as `user.get`: {problem}"),
    ))
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// A literal pattern may be the name a foreign service chose, several names at once where the broker
/// has wildcards, or the JSON text of an object, which is how NestJS applications name things too.
pub(crate) fn literal_pattern(pattern: &LitStr) -> Result<()> {
    let text = pattern.value();
    let problem = if text.is_empty() {
        "it is empty"
    } else if !text.starts_with('{') && text.contains(char::is_whitespace) {
        "it has white space, and is no JSON object"
    } else {
        return Ok(());
    };
    Err(Error::new(
        pattern.span(),
        format!("a pattern is a name, such as `user.get`: {problem}"),
    ))
}

/// One pattern means one shape.
pub(crate) fn no_generics(input: &DeriveInput) -> Result<()> {
    let Some(parameter) = input.generics.params.first() else {
        return Ok(());
    };
    let text = match parameter {
        GenericParam::Lifetime(_) => "a contract owns its fields: a message outlives its bytes",
        _ => "a contract has no parameters: one pattern means one shape",
    };
    Err(Error::new(parameter.span(), text))
}

/// The key is a field of the struct.
pub(crate) fn key(key: &Member, input: &DeriveInput) -> Result<()> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(
            key.span(),
            "only a struct has a field that every value has: \
             implement `Event` by hand to choose the key",
        ));
    };
    if data.fields.members().any(|member| member == *key) {
        return Ok(());
    }
    let name = key.to_token_stream();
    let fields: Vec<_> = data
        .fields
        .members()
        .map(|member| member.to_token_stream().to_string())
        .collect();
    let text = match fields.iter().find(|field| alike(&name.to_string(), field)) {
        Some(near) => format!("no field `{name}`, did you mean `{near}`?"),
        None if fields.is_empty() => format!("no field `{name}`: the event has none"),
        None => format!(
            "no field `{name}`, expected one of `{}`",
            fields.join("`, `")
        ),
    };
    Err(Error::new(key.span(), text))
}

/// A handler's signature, as far as it can be judged without types.
pub(crate) fn signature(signature: &Signature, pattern: &Pattern) -> Result<()> {
    let Some(FnArg::Receiver(receiver)) = signature.inputs.first() else {
        return Err(Error::new(
            signature.ident.span(),
            "a handler takes `&self`: it is called for many messages at once",
        ));
    };
    let plain = receiver.reference.is_some() && receiver.colon_token.is_none();
    if !plain || receiver.mutability.is_some() {
        return Err(Error::new(
            receiver.self_token.span(),
            "a handler takes `&self`: it is called for many messages at once; \
             keep what changes behind a lock or a channel",
        ));
    }
    if let Some(parameter) = signature.generics.params.first() {
        return Err(Error::new(
            parameter.span(),
            "a handler has no parameters of its own",
        ));
    }
    for argument in signature.inputs.iter().skip(1) {
        let FnArg::Typed(argument) = argument else {
            continue;
        };
        if let Type::ImplTrait(_) = &*argument.ty {
            return Err(Error::new(
                argument.ty.span(),
                "a handler's argument has a concrete type",
            ));
        }
    }
    count(signature, pattern)?;
    match pattern.kind {
        Kind::Message => Ok(()),
        Kind::Event => event_result(signature),
    }
}

fn count(signature: &Signature, pattern: &Pattern) -> Result<()> {
    let arguments = signature.inputs.len() - 1;
    let contracts = usize::from(pattern.literal.is_none());
    if arguments < contracts {
        let (name, example) = (pattern.kind.attribute(), pattern.kind.example());
        return Err(Error::new(
            signature.ident.span(),
            format!(
                "a handler's first argument is its contract; \
                 without one, name the pattern: `#[{name}(\"{example}\")]`"
            ),
        ));
    }
    if arguments > contracts + EXTRACTORS {
        let first = if contracts == 1 {
            "its contract and "
        } else {
            ""
        };
        return Err(Error::new(
            signature.inputs[1 + contracts + EXTRACTORS].span(),
            format!("one argument too many: a handler takes {first}up to {EXTRACTORS} extractors"),
        ));
    }
    Ok(())
}

/// What is known not to be `Result<(), _>` is refused here, with a better text than the compiler's.
fn event_result(signature: &Signature) -> Result<()> {
    const WANTED: &str = "the handler of an event returns `Result<(), Error>`: \
                          its error has the event delivered again or rejected";
    let ReturnType::Type(_, output) = &signature.output else {
        return Err(Error::new(signature.ident.span(), WANTED));
    };
    let Type::Path(path) = &**output else {
        return Ok(());
    };
    let Some(last) = path.path.segments.last() else {
        return Ok(());
    };
    if last.ident == "Streaming" {
        return Err(Error::new(last.span(), WANTED));
    }
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return Ok(());
    };
    let Some(GenericArgument::Type(value)) = arguments.args.first() else {
        return Ok(());
    };
    let unit = matches!(value, Type::Tuple(tuple) if tuple.elems.is_empty());
    if last.ident == "Result" && !unit {
        return Err(Error::new(
            value.span(),
            "nobody reads the reply of an event: its handler returns `Result<(), Error>`",
        ));
    }
    Ok(())
}

/// One message, one handler. Contracts are compared as they are written; that two of them share a
/// pattern, or have that of a literal, is found when the constants of [`Controller`] are evaluated.
pub(crate) fn duplicates(controller: &Controller, errors: &mut Vec<Error>) {
    let messages: Vec<_> = controller.unconditional_messages().collect();
    for (index, handler) in messages.iter().enumerate() {
        let Some(first) = messages[..index].iter().find(|first| same(first, handler)) else {
            continue;
        };
        let name = handler.pattern_name();
        let text = format!(
            "message {name} has two handlers: `{}` and `{}`",
            first.name(),
            handler.name()
        );
        errors.push(Error::new(handler.pattern_span(), text));
    }
}

fn same(one: &Handler, other: &Handler) -> bool {
    match (one.contract(), other.contract()) {
        (Some(one), Some(other)) => controller::same_type(one, other),
        (None, None) => one.literal().map(LitStr::value) == other.literal().map(LitStr::value),
        _ => false,
    }
}

/// A limit, as far as it is a number: nothing could ever be in work.
pub(crate) fn at_least_one(limit: &Expr) -> Result<()> {
    match limit {
        Expr::Lit(ExprLit {
            lit: Lit::Int(number),
            ..
        }) if number.base10_digits() == "0" => Err(Error::new(
            number.span(),
            "with a limit of 0 nothing would ever run: give at least 1",
        )),
        _ => Ok(()),
    }
}

/// Whether any of `names` occurs in `tokens`.
pub(crate) fn mentions(tokens: TokenStream, names: &[String]) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => names.iter().any(|name| ident == name),
        TokenTree::Group(group) => mentions(group.stream(), names),
        _ => false,
    })
}

/// Whether one word is probably a mistyped other: at most two letters apart.
pub(crate) fn alike(one: &str, other: &str) -> bool {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, left) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, right) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    let distance = row[other.len()];
    distance <= 2 && distance < one.chars().count()
}
