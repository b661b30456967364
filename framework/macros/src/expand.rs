//! What the macros write.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::{DeriveInput, Error, ItemImpl, Result, Type, parse_quote, spanned::Spanned};

use crate::{
    attr::{self, Kind, Reply},
    controller::{Controller, Handler},
    valid,
};

/// `impl Message for …`.
pub(crate) fn message(input: &DeriveInput) -> Result<TokenStream> {
    let attr::Message {
        pattern,
        reply,
        idempotent,
    } = attr::Message::of(input)?;
    valid::no_generics(input)?;
    let name = &input.ident;
    let (shape, reply) = match reply {
        Reply::Single(reply) => (format_ident!("Single"), reply),
        Reply::Many(reply) => (format_ident!("Many"), reply),
    };
    Ok(quote! {
        #[automatically_derived]
        impl ::nestling::Message for #name {
            const PATTERN: &'static ::std::primitive::str = #pattern;
            const IDEMPOTENT: ::std::primitive::bool = #idempotent;
            type Reply = #reply;
            type Shape = ::nestling::#shape;
        }
    })
}

/// `impl Event for …`.
pub(crate) fn event(input: &DeriveInput) -> Result<TokenStream> {
    let attr::Event {
        pattern,
        key,
        best_effort,
    } = attr::Event::of(input)?;
    valid::no_generics(input)?;
    let name = &input.ident;
    let guarantee = if best_effort {
        format_ident!("BestEffort")
    } else {
        format_ident!("AtLeastOnce")
    };
    let key = match key {
        None => None,
        Some(key) => {
            valid::key(&key, input)?;
            let text = quote_spanned!(key.span()=> ::std::string::ToString::to_string(&self.#key));
            Some(quote! {
                fn key(&self) -> ::std::option::Option<::std::string::String> {
                    ::std::option::Option::Some(#text)
                }
            })
        }
    };
    Ok(quote! {
        #[automatically_derived]
        impl ::nestling::Event for #name {
            const PATTERN: &'static ::std::primitive::str = #pattern;
            const DELIVERY: ::nestling::Guarantee = ::nestling::Guarantee::#guarantee;
            #key
        }
    })
}

/// The block without our attributes, `impl Controller for …`, and what can be checked beside it.
pub(crate) fn controller(arguments: &TokenStream, mut item: ItemImpl) -> TokenStream {
    let mut errors = Vec::new();
    if !arguments.is_empty() {
        errors.push(Error::new(
            arguments.span(),
            "`#[controller]` takes no arguments",
        ));
    }
    let controller = Controller::take(&mut item, &mut errors);
    if let Some(error) = errors.into_iter().reduce(|mut all, error| {
        all.combine(error);
        all
    }) {
        let error = error.into_compile_error();
        if item.trait_.is_some() {
            return quote!(#item #error);
        }
        // A controller without handlers, so that its users do not fail as well.
        let empty = implementation(&controller, |router| router.into_token_stream());
        return quote!(#item #empty #error);
    }
    let implementation = implementation(&controller, |router| registration(&controller, router));
    let checks = checks(&controller);
    // What checks an argument comes first, so that its error does, at the argument.
    quote!(#item #checks #implementation)
}

fn implementation(
    controller: &Controller,
    body: impl FnOnce(&Ident) -> TokenStream,
) -> TokenStream {
    let mut generics = controller.generics.clone();
    if !generics.params.is_empty() {
        generics
            .make_where_clause()
            .predicates
            .push(parse_quote!(Self: ::std::marker::Send + ::std::marker::Sync + 'static));
    }
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    let self_type = &controller.self_type;
    let router = local("router");
    let body = body(&router);
    quote! {
        #[automatically_derived]
        impl #impl_generics ::nestling::Controller for #self_type #where_clause {
            fn register(
                self: ::std::sync::Arc<Self>,
                #router: ::nestling::Router,
            ) -> ::nestling::Router {
                #body
            }
        }
    }
}

/// The calls on `router`; with layers on the controller, on a router of its own that is merged.
fn registration(controller: &Controller, router: &Ident) -> TokenStream {
    let added = controller.handlers.iter().map(|handler| {
        let conditions = &handler.conditions;
        let added = addition(handler, router);
        quote!(#(#conditions)* let #router = #added;)
    });
    if controller.layers.is_empty() {
        return quote!(#(#added)* #router);
    }
    let own = quote!({
        let #router = ::nestling::Router::new();
        #(#added)*
        #router
    });
    let own = layered(&own, &controller.layers);
    quote!(#router.merge(#own))
}

/// The call that adds one handler to `router`; with layers or a limit, on a router of its own that is
/// merged.
fn addition(handler: &Handler, router: &Ident) -> TokenStream {
    let call = call(handler);
    let this = local("this");
    let most = &handler.pattern.max_in_flight;
    let limited = most.as_ref().map(|most| quote!(.max_in_flight(#most)));
    let added = if handler.layers.is_empty() && limited.is_none() {
        quote!(#router #call)
    } else {
        let own = quote!(::nestling::Router::new() #call #limited);
        let own = layered(&own, &handler.layers);
        quote!(#router.merge(#own))
    };
    quote!({
        let #this = ::std::sync::Arc::clone(&self);
        #added
    })
}

/// `.message(closure)` and its siblings. The argument types are given rather than inferred, because
/// only then does the compiler say which of them, or that the reply, is wrong; and it says so at the
/// last of the parameters, which is why that has the place of the return type.
fn call(handler: &Handler) -> TokenStream {
    let types = &handler.arguments;
    let names: Vec<_> = (0..types.len())
        .map(|index| local(&format!("argument{index}")))
        .collect();
    let (this, method) = (local("this"), &handler.method);
    let wait = handler.waits.then(|| quote!(.await));
    let closure = quote! {
        move |#(#names: #types),*| {
            let #this = ::std::sync::Arc::clone(&#this);
            async move { Self::#method(&#this, #(#names),*) #wait }
        }
    };
    let inferred = quote_spanned!(handler.output_span()=> _);
    let verb = match (handler.pattern.kind, handler.literal()) {
        (Kind::Message, None) => "message",
        (Kind::Message, Some(_)) => "message_at",
        (Kind::Event, None) => "event",
        (Kind::Event, Some(_)) => "event_at",
    };
    let literal = handler.literal().map(|literal| quote!(#literal,));
    let verb = Ident::new(verb, method.span());
    let handed = quote!(#literal #closure);
    // The place of the method is what a router names when two controllers handle one message.
    quote_spanned!(method.span()=> .#verb::<(#(#types,)*), #inferred>(#handed))
}

/// Puts `layers` around `router`: the first is the outermost, so it comes last.
fn layered(router: &TokenStream, layers: &[syn::Expr]) -> TokenStream {
    let layers = layers.iter().rev();
    quote!(#router #(.layer(#layers))*)
}

/// A local variable that the user's expressions cannot see, whatever they name theirs.
fn local(name: &str) -> Ident {
    Ident::new(name, Span::mixed_site())
}

/// Constants that do not compile when an argument is not what it must be or two patterns are equal.
fn checks(controller: &Controller) -> TokenStream {
    let contracts = controller.handlers.iter().filter_map(|handler| {
        let contract = handler
            .contract()
            .filter(|contract| controller.is_free(contract))?;
        let (conditions, kind) = (&handler.conditions, trait_of(handler.pattern.kind));
        let check = check(&kind, contract);
        Some(quote!(#(#conditions)* #check))
    });
    let extractors = controller.handlers.iter().flat_map(|handler| {
        let conditions = &handler.conditions;
        let free = handler
            .extractors()
            .iter()
            .filter(|extractor| controller.is_free(extractor));
        free.map(move |extractor| {
            let check = check(&format_ident!("FromContext"), extractor);
            quote!(#(#conditions)* #check)
        })
    });
    let distinct = distinct(controller);
    quote!(#(#contracts)* #(#extractors)* #distinct)
}

fn trait_of(kind: Kind) -> Ident {
    match kind {
        Kind::Message => format_ident!("Message"),
        Kind::Event => format_ident!("Event"),
    }
}

/// An item that does not compile unless `checked` implements `bound`, said at the place of `checked`.
fn check(bound: &Ident, checked: &Type) -> TokenStream {
    quote! {
        const _: fn() = || {
            fn check<T: ::nestling::#bound>() {}
            check::<#checked>();
        };
    }
}

/// Compares every two patterns of messages, as far as they are known outside the block.
fn distinct(controller: &Controller) -> Option<TokenStream> {
    let messages: Vec<_> = controller
        .unconditional_messages()
        .filter(|handler| {
            handler
                .contract()
                .is_none_or(|contract| controller.is_free(contract))
        })
        .collect();
    let comparisons = messages.iter().enumerate().flat_map(|(index, handler)| {
        messages[..index]
            .iter()
            .filter(|first| first.contract().is_some() || handler.contract().is_some())
            .map(|first| comparison(first, handler))
    });
    let comparisons: Vec<_> = comparisons.collect();
    if comparisons.is_empty() {
        return None;
    }
    Some(quote! {
        const _: () = {
            const fn equal(one: &::std::primitive::str, other: &::std::primitive::str) -> ::std::primitive::bool {
                let (one, other) = (one.as_bytes(), other.as_bytes());
                if one.len() != other.len() {
                    return false;
                }
                let mut index = 0;
                while index < one.len() {
                    if one[index] != other[index] {
                        return false;
                    }
                    index += 1;
                }
                true
            }
            #(#comparisons)*
        };
    })
}

fn comparison(first: &Handler, second: &Handler) -> TokenStream {
    let text = format!(
        "one message has two handlers: `{}` for {} and `{}` for {}",
        first.name(),
        first.pattern_name(),
        second.name(),
        second.pattern_name(),
    );
    let (one, other) = (pattern(first), pattern(second));
    quote_spanned! {second.pattern_span()=>
        if equal(#one, #other) {
            // The text may have braces: that of an object does.
            ::std::panic!("{}", #text);
        }
    }
}

fn pattern(handler: &Handler) -> TokenStream {
    match (handler.literal(), handler.contract()) {
        (Some(literal), _) => literal.to_token_stream(),
        (None, contract) => quote!(<#contract as ::nestling::Message>::PATTERN),
    }
}
