//! An `impl` block as a controller: its handlers, and the layers around them.

use proc_macro2::{Span, TokenStream};
use quote::ToTokens;
use syn::{
    Attribute, Error, Expr, FnArg, Generics, Ident, ImplItem, ItemImpl, LitStr, ReturnType, Type,
    TypeParamBound, spanned::Spanned,
};

use crate::{
    attr::{self, Kind, Pattern},
    valid,
};

/// What `#[controller]` knows of the block it is on.
pub(crate) struct Controller {
    pub(crate) generics: Generics,
    pub(crate) self_type: Type,
    pub(crate) handlers: Vec<Handler>,
    /// Around all handlers, the outermost first.
    pub(crate) layers: Vec<Expr>,
}

/// One method that handles a message or an event.
pub(crate) struct Handler {
    pub(crate) pattern: Pattern,
    pub(crate) method: Ident,
    pub(crate) arguments: Vec<Type>,
    pub(crate) output: ReturnType,
    /// Whether calling it gives a future.
    pub(crate) waits: bool,
    /// Around this handler, the outermost first.
    pub(crate) layers: Vec<Expr>,
    /// Its `#[cfg(…)]`s, which its registration shares.
    pub(crate) conditions: Vec<Attribute>,
}

impl Controller {
    /// Takes our attributes off `item` and reads them; what is wrong goes into `errors`.
    pub(crate) fn take(item: &mut ItemImpl, errors: &mut Vec<Error>) -> Self {
        if let Some((_, path, _)) = &item.trait_ {
            errors.push(Error::new(
                path.span(),
                "`#[controller]` goes on an `impl` block of the type itself, not of a trait",
            ));
        }
        let mut layers = Vec::new();
        for (attribute, span) in attributes(&mut item.attrs, errors) {
            match attribute {
                attr::Handler::Layer(layer) => layers.push(*layer),
                attr::Handler::Pattern(_) => {
                    errors.push(Error::new(span, "this goes on a method of the block"));
                }
            }
        }
        let mut handlers = Vec::new();
        for item in &mut item.items {
            if let ImplItem::Fn(method) = item {
                let ours = attributes(&mut method.attrs, errors);
                handlers.extend(Handler::new(&method.sig, &method.attrs, ours, errors));
            }
        }
        let controller = Self {
            generics: item.generics.clone(),
            self_type: (*item.self_ty).clone(),
            handlers,
            layers,
        };
        valid::duplicates(&controller, errors);
        controller
    }

    /// The handlers of messages that are there in every build, so that they can be compared.
    pub(crate) fn unconditional_messages(&self) -> impl Iterator<Item = &Handler> {
        self.handlers.iter().filter(|handler| {
            handler.pattern.kind == Kind::Message && handler.conditions.is_empty()
        })
    }

    /// Whether `tokens` mean the same outside the block: they name neither `Self` nor a parameter.
    pub(crate) fn is_free(&self, tokens: impl ToTokens) -> bool {
        let mut names = vec!["Self".to_owned()];
        names.extend(
            self.generics
                .type_params()
                .map(|parameter| parameter.ident.to_string()),
        );
        names.extend(
            self.generics
                .const_params()
                .map(|parameter| parameter.ident.to_string()),
        );
        !valid::mentions(tokens.into_token_stream(), &names)
    }
}

impl Handler {
    fn new(
        signature: &syn::Signature,
        others: &[Attribute],
        ours: Vec<(attr::Handler, Span)>,
        errors: &mut Vec<Error>,
    ) -> Option<Self> {
        let (mut pattern, mut layers) = (None, Vec::new());
        let mut first_layer = None;
        for (attribute, span) in ours {
            match attribute {
                attr::Handler::Layer(layer) => {
                    layers.push(*layer);
                    first_layer.get_or_insert(span);
                }
                attr::Handler::Pattern(_) if pattern.is_some() => {
                    errors.push(Error::new(
                        span,
                        "a method handles one message or one event",
                    ));
                }
                attr::Handler::Pattern(one) => pattern = Some(one),
            }
        }
        let Some(pattern) = pattern else {
            if let Some(span) = first_layer {
                errors.push(Error::new(
                    span,
                    "a layer around nothing: \
                     this method has no `#[message_pattern]` and no `#[event_pattern]`",
                ));
            }
            return None;
        };
        if let Err(error) = valid::signature(signature, &pattern) {
            errors.push(error);
            return None;
        }
        let arguments = signature
            .inputs
            .iter()
            .filter_map(|argument| match argument {
                FnArg::Receiver(_) => None,
                FnArg::Typed(argument) => Some((*argument.ty).clone()),
            });
        let conditions = others
            .iter()
            .filter(|attribute| attribute.path().is_ident("cfg"));
        Some(Self {
            pattern,
            method: signature.ident.clone(),
            arguments: arguments.collect(),
            output: signature.output.clone(),
            waits: signature.asyncness.is_some() || returns_future(&signature.output),
            layers,
            conditions: conditions.cloned().collect(),
        })
    }

    pub(crate) fn name(&self) -> String {
        self.method.to_string()
    }

    /// The type that has the pattern, unless the attribute has it.
    pub(crate) fn contract(&self) -> Option<&Type> {
        match self.pattern.literal {
            None => self.arguments.first(),
            Some(_) => None,
        }
    }

    pub(crate) fn literal(&self) -> Option<&LitStr> {
        self.pattern.literal.as_ref()
    }

    pub(crate) fn extractors(&self) -> &[Type] {
        match self.pattern.literal {
            None => self.arguments.get(1..).unwrap_or_default(),
            Some(_) => &self.arguments,
        }
    }

    /// The pattern as a person would say it: that of a literal, or the contract's name.
    pub(crate) fn pattern_name(&self) -> String {
        match (self.literal(), self.contract()) {
            (Some(literal), _) => format!("{:?}", literal.value()),
            (None, contract) => format!("`{}`", contract.to_token_stream()),
        }
    }

    /// Where the pattern is said.
    pub(crate) fn pattern_span(&self) -> Span {
        match (self.literal(), self.contract()) {
            (Some(literal), _) => literal.span(),
            (None, Some(contract)) => contract.span(),
            (None, None) => self.pattern.span,
        }
    }

    /// Where a wrong reply is to be reported: at the return type, or the name without one.
    pub(crate) fn output_span(&self) -> Span {
        match &self.output {
            ReturnType::Type(_, output) => output.span(),
            ReturnType::Default => self.method.span(),
        }
    }
}

/// Removes our attributes from `attributes` and reads them.
fn attributes(
    attributes: &mut Vec<Attribute>,
    errors: &mut Vec<Error>,
) -> Vec<(attr::Handler, Span)> {
    let mut ours = Vec::new();
    attributes.retain(|attribute| match attr::Handler::of(attribute) {
        None => true,
        Some(Ok(one)) => {
            ours.push((one, attribute.path().span()));
            false
        }
        Some(Err(error)) => {
            errors.push(error);
            false
        }
    });
    ours
}

/// Whether it is `impl Future<…>`, what an `async fn` is short for.
fn returns_future(output: &ReturnType) -> bool {
    let ReturnType::Type(_, output) = output else {
        return false;
    };
    let Type::ImplTrait(output) = &**output else {
        return false;
    };
    output.bounds.iter().any(|bound| match bound {
        TypeParamBound::Trait(bound) => bound
            .path
            .segments
            .last()
            .is_some_and(|last| last.ident == "Future"),
        _ => false,
    })
}

/// Two types are the same when they are written the same.
pub(crate) fn same_type(one: &Type, other: &Type) -> bool {
    let text = |tokens: TokenStream| tokens.to_string();
    text(one.to_token_stream()) == text(other.to_token_stream())
}
