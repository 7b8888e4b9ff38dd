//! The steps by which one authority takes another's place, as values: what each step means for those who are at it, and who is not there yet.
//!
//! Nobody may show what somebody does not trust yet, and nobody may stop trusting what somebody still shows. So there are three steps, and each begins when everybody has
//! taken up the one before.

use serde::{Deserialize, Serialize};
use skiff_identity::{each, hash, stance};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Both are trusted; the old one issues.
    Trust,
    /// Both are trusted; the new one issues, and everybody has a certificate of it made.
    Issue,
    /// The new one alone is trusted.
    Finish,
}

impl Step {
    pub fn word(self) -> &'static str {
        match self {
            Step::Trust => "trust",
            Step::Issue => "issue",
            Step::Finish => "finish",
        }
    }

    pub fn from_word(word: &str) -> Option<Step> {
        [Step::Trust, Step::Issue, Step::Finish].into_iter().find(|step| step.word() == word)
    }
}

/// An exchange, at one of its steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    pub step: Step,
    /// Certificates, PEM.
    pub old: String,
    pub new: String,
    /// The new one's key, PEM, for as long as a server may still need it: until everybody has a certificate of the new one.
    pub new_key: Option<String>,
}

impl Rotation {
    /// The certificates that are trusted at this step; the one that issues first.
    pub fn bundle(&self) -> String {
        let text = match self.step {
            Step::Trust => [&self.old, &self.new].map(String::as_str).concat(),
            Step::Issue => [&self.new, &self.old].map(String::as_str).concat(),
            Step::Finish => self.new.clone(),
        };
        each(&text).concat()
    }

    /// The certificate of the one that issues. There may be others behind it: older versions began with all that was trusted.
    pub fn issuer(&self) -> String {
        let text = match self.step {
            Step::Trust => &self.old,
            Step::Issue | Step::Finish => &self.new,
        };
        each(text).into_iter().next().unwrap_or_default()
    }

    /// The key that issues; None where it is the one that each server has already.
    pub fn issuing_key(&self) -> Option<&str> {
        match self.step {
            Step::Trust | Step::Finish => None,
            Step::Issue => self.new_key.as_deref(),
        }
    }

    /// Where somebody stands who has taken up this step.
    pub fn stance(&self) -> String {
        // Of a certificate only who issued it counts.
        stance(&self.bundle(), &self.issuer().repeat(2))
    }

    /// The next step, if `wanted` is it.
    pub fn next(&self, wanted: Step) -> Option<Rotation> {
        let new_key = match (self.step, wanted) {
            (Step::Trust, Step::Issue) => self.new_key.clone(),
            (Step::Issue, Step::Finish) => None,
            _ => return None,
        };
        Some(Rotation { step: wanted, new_key, ..self.clone() })
    }

    /// The two in words, for people.
    pub fn names(&self) -> (String, String) {
        let short = |pem: &str| hash(pem).map_or_else(|e| e.to_string(), |h| h[..16].to_owned());
        (short(&self.old), short(&self.new))
    }
}

/// Who has not taken up a step yet, in words; nobody: the next step may begin. Each comes with where they stand, if that is known.
pub fn waiting(
    wanted: &str,
    servers: &[(String, Option<String>)],
    nodes: &[(String, Option<String>)],
    bundle: &str,
    maps: &[(String, Option<String>)],
) -> Vec<String> {
    let behind = |at: &Option<String>| at.as_deref() != Some(wanted);
    let servers = servers.iter().filter(|(_, at)| behind(at));
    let servers = servers.map(|(name, _)| format!("server {name} (start it, or take it out: skiff member rm {name})"));
    let nodes = nodes.iter().filter(|(_, at)| behind(at));
    let nodes =
        nodes.map(|(name, _)| format!("node {name} (start its agent, or take it out: kubectl delete node {name})"));
    // One that is not there yet is made from what is trusted then.
    let maps = maps.iter().filter(|(_, ca)| ca.as_deref().is_some_and(|ca| ca != bundle));
    let maps = maps.map(|(namespace, _)| format!("the ConfigMap kube-root-ca.crt in the namespace {namespace}"));
    servers.chain(nodes).chain(maps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_identity::{Ca, Subject};

    #[test]
    fn each_step_follows_the_one_before() {
        let (old, new) = (Ca::generate().unwrap(), Ca::generate().unwrap());
        let begun = Rotation {
            step: Step::Trust,
            old: old.certificate().into(),
            new: new.certificate().into(),
            new_key: Some(new.pair().key.clone()),
        };
        assert_eq!(begun.next(Step::Trust), None);
        assert_eq!(begun.next(Step::Finish), None, "nobody shows the new one yet");
        let issuing = begun.next(Step::Issue).unwrap();
        assert_eq!((issuing.next(Step::Trust), issuing.next(Step::Issue)), (None, None));
        let over = issuing.next(Step::Finish).unwrap();
        assert_eq!(over.new_key, None, "the key does not stay in the store");
        let leaf = |ca: &Ca| ca.issue(&Subject::Node { name: "n".into() }).unwrap().certificate;
        for (rotation, trusted, issuer) in [(&begun, 2, &old), (&issuing, 2, &new), (&over, 1, &new)] {
            assert_eq!(each(&rotation.bundle()).len(), trusted);
            assert_eq!(each(&rotation.bundle())[0], each(issuer.certificate())[0], "who issues comes first");
            assert_eq!(rotation.stance(), stance(&rotation.bundle(), &leaf(issuer)));
        }
        for step in [Step::Trust, Step::Issue, Step::Finish] {
            assert_eq!(Step::from_word(step.word()), Some(step));
        }
    }

    #[test]
    fn whoever_is_behind_or_silent_is_waited_for() {
        let at = |name: &str, at: Option<&str>| (name.to_owned(), at.map(str::to_owned));
        let check = |servers: &[_], nodes: &[_], maps: &[_], expect: &[&str]| {
            let waiting = waiting("here", servers, nodes, "pem", maps);
            assert_eq!(waiting.len(), expect.len(), "{waiting:?}");
            assert!(waiting.iter().zip(expect).all(|(w, e)| w.starts_with(e)), "{waiting:?}");
        };
        let here = Some("here");
        check(&[at("s1", here)], &[at("a1", here)], &[at("default", Some("pem"))], &[]);
        check(&[at("s1", here), at("s2", None)], &[], &[], &["server s2 "]);
        check(&[at("s1", Some("there"))], &[at("a1", None), at("a2", here)], &[], &["server s1 ", "node a1 "]);
        check(
            &[],
            &[],
            &[at("new", None), at("default", Some("old"))],
            &["the ConfigMap kube-root-ca.crt in the namespace default"],
        );
    }
}
