//! Media types: what a client sent, and which of the forms that we have it wants back.

/// How objects are put to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shape {
    /// The object or list itself.
    #[default]
    Plain,
    /// `as=Table`: columns and rows for a terminal.
    Table { beta: bool },
    /// `as=PartialObjectMetadata` or its list: metadata only.
    Partial { list: bool, beta: bool },
    /// `as=APIGroupDiscoveryList` in v2 or v2beta1.
    Discovery { beta: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Json,
    Yaml,
}

/// What one answer will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wanted {
    pub format: Format,
    pub shape: Shape,
    pub pretty: bool,
}

/// What can be answered in plain form, told in refusals as the reference server does.
pub const ACCEPTED: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// Which shapes an endpoint offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offers {
    Objects,
    Discovery,
    PlainOnly,
}

/// A media range: type, parameters, quality in thousandths.
struct Range<'a> {
    media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: u32,
}

fn ranges(accept: &str) -> Vec<Range<'_>> {
    let mut all: Vec<Range<'_>> = accept
        .split(',')
        .map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let parameters: Vec<_> =
                parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
            let quality = parameters.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse::<f32>().ok());
            Range { media, parameters, quality: (quality.unwrap_or(1.0) * 1000.0) as u32 }
        })
        .filter(|r| !r.media.is_empty())
        .collect();
    all.sort_by_key(|r| std::cmp::Reverse(r.quality));
    all
}

/// The first acceptable form; None when there is none (406).
pub fn negotiate(accept: &str, offers: Offers) -> Option<Wanted> {
    if accept.trim().is_empty() {
        return Some(Wanted::default());
    }
    ranges(accept).iter().find_map(|range| acceptable(range, offers))
}

fn acceptable(range: &Range<'_>, offers: Offers) -> Option<Wanted> {
    let format = match range.media {
        "application/json" | "*/*" | "application/*" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let parameter = |name: &str| range.parameters.iter().find(|(k, _)| *k == name).map(|(_, v)| *v);
    let pretty = parameter("pretty").is_some_and(|v| v == "1" || v == "true");
    let shape = match (parameter("as"), parameter("g").unwrap_or(""), parameter("v").unwrap_or("")) {
        (None, ..) => Shape::Plain,
        (Some(shape), group, version) => match (shape, group, version, offers) {
            ("Table", "meta.k8s.io", "v1" | "v1beta1", Offers::Objects) => Shape::Table { beta: version == "v1beta1" },
            ("PartialObjectMetadata", "meta.k8s.io", "v1" | "v1beta1", Offers::Objects) => {
                Shape::Partial { list: false, beta: version == "v1beta1" }
            }
            ("PartialObjectMetadataList", "meta.k8s.io", "v1" | "v1beta1", Offers::Objects) => {
                Shape::Partial { list: true, beta: version == "v1beta1" }
            }
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2", Offers::Discovery) => {
                Shape::Discovery { beta: false }
            }
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1", Offers::Discovery) => {
                Shape::Discovery { beta: true }
            }
            _ => return None,
        },
    };
    Some(Wanted { format, shape, pretty })
}

/// The media type of a `Content-Type`, without its parameters.
pub fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_form_that_we_have_wins() {
        let check = |accept: &str, offers: Offers, expect: Option<(Format, Shape)>| {
            assert_eq!(negotiate(accept, offers).map(|w| (w.format, w.shape)), expect, "{accept}");
        };
        use Format::*;
        check("", Offers::Objects, Some((Json, Shape::Plain)));
        check("*/*", Offers::Objects, Some((Json, Shape::Plain)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Offers::Objects,
            Some((Json, Shape::Table { beta: false })),
        );
        check(
            "application/json;as=Table;v=v9;g=meta.k8s.io,application/json",
            Offers::Objects,
            Some((Json, Shape::Plain)),
        );
        check("application/json;as=Table;v=v9;g=meta.k8s.io", Offers::Objects, None);
        check("application/vnd.kubernetes.protobuf,application/json", Offers::Objects, Some((Json, Shape::Plain)));
        check("application/vnd.kubernetes.protobuf", Offers::Objects, None);
        check("application/yaml", Offers::Objects, Some((Yaml, Shape::Plain)));
        check("text/plain;q=0.9, application/json;q=0.1", Offers::Objects, Some((Json, Shape::Plain)));
        let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        check(v2, Offers::Discovery, Some((Json, Shape::Discovery { beta: false })));
        check(v2, Offers::Objects, Some((Json, Shape::Plain)));
    }
}
