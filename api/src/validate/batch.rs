//! Jobs and what starts them by the clock.

use super::check::{
    Errors, Path, flag, immutable, int, invalid_all, list, non_negative, required, shown, some, sorted, text,
};
use super::error::FieldError;
use super::pod;
use super::selectors::label_selector;
use crate::meta::{self, names};
use crate::selector::LabelSelector;
use serde_json::{Value, json};

const RULES_MAX: usize = 20;
const EXIT_CODES_MAX: usize = 255;
const PARALLELISM_MAX: i64 = 100_000;
const MANAGER_LEN_MAX: usize = 63;
/// A cron job's name gets a suffix of 11 characters in its jobs' names.
const CRON_NAME_LEN_MAX: usize = 52;
const INDEXED: &str = "Indexed";
const REQUIRES_INDEXED: &str = "requires indexed completion mode";

fn spec_of(obj: &Value) -> &Value {
    obj.get("spec").unwrap_or(&Value::Null)
}

fn is_indexed(spec: &Value) -> bool {
    text(spec, "completionMode") == INDEXED
}

pub(super) fn job(errs: &mut Errors, obj: &Value) {
    let (spec, path) = (spec_of(obj), Path::new("spec"));
    generated_selector(errs, obj, spec, &path);
    whole_spec(errs, spec, &path);
    if let Some(completions) = int(spec, "completions").filter(|n| *n > 0 && is_indexed(spec)) {
        let last = format!("{}-{}", meta::name(obj), completions - 1);
        if !names::dns1123_label(&last).is_empty() {
            let detail = format!("will not able to create pod with invalid DNS label: {last}");
            errs.push(FieldError::invalid("metadata.name", meta::name(obj), detail));
        }
    }
}

/// A selector that the server made selects the job's own pods and no others.
fn generated_selector(errs: &mut Errors, obj: &Value, spec: &Value, path: &Path) {
    let Some(selector) = some(spec, "selector").filter(|_| !flag(spec, "manualSelector")) else { return };
    let labels = meta::map_at(spec, &["template", "metadata", "labels"]);
    let at = path.child("template").child("metadata").child("labels");
    let (uid, name) = (meta::uid(obj), meta::name(obj));
    let expected = [
        ("batch.kubernetes.io/controller-uid", uid),
        ("batch.kubernetes.io/job-name", name),
        ("controller-uid", uid),
        ("job-name", name),
    ];
    for (key, value) in expected {
        if labels.and_then(|l| l.get(key)).is_none_or(|found| found != value) {
            let found = meta::at(spec, &["template", "metadata", "labels"]).map(sorted).unwrap_or(Value::Null);
            errs.push(FieldError::invalid(&at, found, format!("must be '{value}'")));
        }
    }
    let of_the_server = |key: &str| expected.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
    if LabelSelector::from_json(selector).is_ok_and(|s| !s.matches_with(of_the_server)) {
        errs.push(FieldError::invalid(path.child("selector"), sorted(selector), "`selector` not auto-generated"));
    }
}

/// The spec of a job itself, whose selector must find the pods that it makes.
fn whole_spec(errs: &mut Errors, spec: &Value, path: &Path) {
    job_spec(errs, spec, path);
    let selector = some(spec, "selector");
    match selector {
        None => errs.push(FieldError::required(path.child("selector"), "")),
        Some(selector) => label_selector(errs, selector, &path.child("selector")),
    }
    let parsed = selector.map_or(Ok(LabelSelector::nothing()), LabelSelector::from_json);
    if parsed.is_ok_and(|s| !s.matches(meta::map_at(spec, &["template", "metadata", "labels"]))) {
        let found = meta::at(spec, &["template", "metadata", "labels"]).map(sorted).unwrap_or(Value::Null);
        let at = path.child("template").child("metadata").child("labels");
        errs.push(FieldError::invalid(at, found, "`selector` does not match template `labels`"));
    }
}

fn job_spec(errs: &mut Errors, spec: &Value, path: &Path) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
    ] {
        non_negative(errs, spec, key, path);
    }
    if some(spec, "maxFailedIndexes").is_some() {
        non_negative(errs, spec, "maxFailedIndexes", path);
        if some(spec, "backoffLimitPerIndex").is_none() {
            let detail = "when maxFailedIndexes is specified";
            errs.push(FieldError::required(path.child("backoffLimitPerIndex"), detail));
        }
    }
    if let Some(manager) = some(spec, "managedBy").and_then(Value::as_str) {
        invalid_all(errs, &path.child("managedBy"), manager, names::domain_prefixed_path(manager));
        if manager.len() > MANAGER_LEN_MAX {
            errs.push(FieldError::too_long(path.child("managedBy"), MANAGER_LEN_MAX));
        }
    }
    completion(errs, spec, path);
    if let Some(policy) = some(spec, "podFailurePolicy") {
        failure_policy(errs, spec, policy, &path.child("podFailurePolicy"));
    }
    if let Some(policy) = some(spec, "successPolicy") {
        if is_indexed(spec) {
            success_policy(errs, spec, policy, &path.child("successPolicy"));
        } else {
            errs.push(FieldError::invalid(path.child("successPolicy"), policy.clone(), REQUIRES_INDEXED));
        }
    }
    if let Some(policy) = some(spec, "podReplacementPolicy").and_then(Value::as_str) {
        let failure = some(spec, "podFailurePolicy").is_some();
        let allowed: &[&str] = if failure { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        if !allowed.contains(&policy) {
            errs.push(FieldError::not_supported(path.child("podReplacementPolicy"), policy, allowed));
        }
    }
    let at = path.child("template");
    pod::template(errs, spec.get("template").unwrap_or(&Value::Null), &at);
    restart_policy(errs, spec, &at.child("spec").child("restartPolicy"));
}

/// Pods of a job that always start again would never end.
fn restart_policy(errs: &mut Errors, spec: &Value, at: &Path) {
    match meta::str_at(spec, &["template", "spec", "restartPolicy"]) {
        "" | "Always" => errs.push(FieldError::required(at, "valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" if some(spec, "podFailurePolicy").is_some() => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errs.push(FieldError::invalid(at, "OnFailure", detail));
        }
        // Anything else is told with the template.
        _ => {}
    }
}

fn completion(errs: &mut Errors, spec: &Value, path: &Path) {
    let mode = text(spec, "completionMode");
    if some(spec, "completionMode").is_some() && !matches!(mode, "NonIndexed" | INDEXED) {
        errs.push(FieldError::not_supported(path.child("completionMode"), mode, &["NonIndexed", INDEXED]));
    }
    if !is_indexed(spec) {
        for key in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(value) = some(spec, key) {
                errs.push(FieldError::invalid(path.child(key), value.clone(), REQUIRES_INDEXED));
            }
        }
        return;
    }
    if some(spec, "completions").is_none() {
        errs.push(FieldError::required(path.child("completions"), "when completion mode is Indexed"));
    }
    if let Some(many) = int(spec, "parallelism").filter(|n| *n > PARALLELISM_MAX) {
        let detail = format!("must be less than or equal to {PARALLELISM_MAX} when completion mode is Indexed");
        errs.push(FieldError::invalid(path.child("parallelism"), many, detail));
    }
    if let (Some(failed), Some(all)) = (int(spec, "maxFailedIndexes"), int(spec, "completions"))
        && failed > all
    {
        let detail = "must be less than or equal to completions";
        errs.push(FieldError::invalid(path.child("maxFailedIndexes"), failed, detail));
    }
}

fn failure_policy(errs: &mut Errors, spec: &Value, policy: &Value, path: &Path) {
    let rules = list(policy, "rules");
    let at = path.child("rules");
    if rules.len() > RULES_MAX {
        errs.push(FieldError::too_many(&at, rules.len(), RULES_MAX));
    }
    let pod = meta::at(spec, &["template", "spec"]).unwrap_or(&Value::Null);
    let containers: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|key| list(pod, key).iter().map(|c| text(c, "name")))
        .collect();
    for (i, rule) in rules.iter().enumerate() {
        failure_rule(errs, spec, rule, &containers, &at.index(i));
    }
}

fn failure_rule(errs: &mut Errors, spec: &Value, rule: &Value, containers: &[&str], path: &Path) {
    const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
    let action = text(rule, "action");
    let at = path.child("action");
    if action.is_empty() {
        errs.push(FieldError::required(at, format!("valid values: {ACTIONS:?}")));
    } else if action == "FailIndex" && some(spec, "backoffLimitPerIndex").is_none() {
        errs.push(FieldError::invalid(at, action, "requires the backoffLimitPerIndex to be set"));
    } else if !ACTIONS.contains(&action) {
        errs.push(FieldError::not_supported(at, action, &ACTIONS));
    }
    let codes = some(rule, "onExitCodes");
    if let Some(codes) = codes {
        exit_codes(errs, codes, containers, &path.child("onExitCodes"));
    }
    let conditions = list(rule, "onPodConditions");
    let at = path.child("onPodConditions");
    if conditions.len() > RULES_MAX {
        errs.push(FieldError::too_many(&at, conditions.len(), RULES_MAX));
    }
    for (i, condition) in conditions.iter().enumerate() {
        let at = at.index(i);
        let kind = text(condition, "type");
        invalid_all(errs, &at.child("type"), kind, names::qualified_name(kind));
        super::check::required_one_of(errs, condition, "status", &at, &["False", "True", "Unknown"]);
    }
    match (codes.is_some(), conditions.is_empty()) {
        (true, false) => {
            let detail = "specifying both OnExitCodes and OnPodConditions is not supported";
            errs.push(FieldError::invalid_unshown(path, detail));
        }
        (false, true) => {
            let detail = "specifying one of OnExitCodes and OnPodConditions is required";
            errs.push(FieldError::invalid_unshown(path, detail));
        }
        _ => {}
    }
}

fn exit_codes(errs: &mut Errors, codes: &Value, containers: &[&str], path: &Path) {
    super::check::required_one_of(errs, codes, "operator", path, &["In", "NotIn"]);
    if let Some(name) = some(codes, "containerName").and_then(Value::as_str)
        && !containers.contains(&name)
    {
        let detail = "must be one of the container or initContainer names in the pod template";
        errs.push(FieldError::invalid(path.child("containerName"), name, detail));
    }
    let values: Vec<i64> = list(codes, "values").iter().filter_map(Value::as_i64).collect();
    let at = path.child("values");
    if values.is_empty() {
        errs.push(FieldError::invalid(&at, shown(codes, "values"), "at least one value is required"));
    } else if values.len() > EXIT_CODES_MAX {
        errs.push(FieldError::too_many(&at, values.len(), EXIT_CODES_MAX));
    }
    for (i, value) in values.iter().enumerate() {
        if *value == 0 && text(codes, "operator") == "In" {
            errs.push(FieldError::invalid(at.index(i), 0, "must not be 0 for the In operator"));
        }
        if values[..i].contains(value) {
            errs.push(FieldError::duplicate(at.index(i), *value));
        }
    }
    if !values.is_sorted() {
        errs.push(FieldError::invalid(&at, json!(values), "must be ordered"));
    }
}

fn success_policy(errs: &mut Errors, spec: &Value, policy: &Value, path: &Path) {
    let rules = list(policy, "rules");
    let at = path.child("rules");
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errs.push(FieldError::required(&at, detail));
    } else if rules.len() > RULES_MAX {
        errs.push(FieldError::too_many(&at, rules.len(), RULES_MAX));
    }
    let completions = int(spec, "completions").unwrap_or(0);
    for (i, rule) in rules.iter().enumerate() {
        let at = at.index(i);
        let (indexes, count) = (some(rule, "succeededIndexes").and_then(Value::as_str), int(rule, "succeededCount"));
        if indexes.is_none() && count.is_none() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errs.push(FieldError::required(&at, detail));
        }
        let total = indexes.map(|indexes| (indexes, count_indexes(indexes, completions)));
        if let Some((indexes, Err(why))) = &total {
            let detail = format!("error parsing succeededIndexes: {why}");
            errs.push(FieldError::invalid(at.child("succeededIndexes"), *indexes, detail));
        }
        let Some(count) = count else { continue };
        non_negative(errs, rule, "succeededCount", &at);
        if count > completions {
            let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
            errs.push(FieldError::invalid(at.child("succeededCount"), count, detail));
        }
        if let Some((_, Ok(total))) = total
            && count > total
        {
            let detail = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errs.push(FieldError::invalid(at.child("succeededCount"), count, detail));
        }
    }
}

/// How many indexes `0,2-4` names; they must rise and be below `completions`.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut total, mut last) = (0, None);
    let number = |part: &str| {
        let n: i64 = part.parse().map_err(|_| format!("cannot convert string to integer for index: {part:?}"))?;
        if n >= completions { Err(format!("too large index: {part:?}")) } else { Ok(n) }
    };
    let rising = |before: Option<i64>, now: i64| match before {
        Some(before) if before >= now => Err(format!("non-increasing order, previous: {before}, current: {now}")),
        _ => Ok(()),
    };
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let parts: Vec<&str> = interval.split('-').collect();
        if parts.len() > 2 {
            return Err(format!(
                "the fragment {interval:?} violates the requirement that an index interval can have at most two parts \
                 separated by '-'"
            ));
        }
        let first = number(parts[0])?;
        rising(last, first)?;
        let end = match parts.get(1) {
            Some(part) => {
                let end = number(part)?;
                rising(Some(first), end)?;
                end
            }
            None => first,
        };
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

/// What of a job may not change. A job that is suspended and has not started may still be placed elsewhere.
pub(super) fn job_update(errs: &mut Errors, new: &Value, old: &Value) {
    let (spec, was, path) = (spec_of(new), spec_of(old), Path::new("spec"));
    whole_spec(errs, spec, &path);
    let (completions, before) = (some(spec, "completions"), some(was, "completions"));
    if completions != before {
        if !is_indexed(spec) {
            immutable(errs, spec, was, "completions", &path);
        } else if completions != some(spec, "parallelism") {
            let detail = "can only be modified in tandem with spec.parallelism";
            errs.push(FieldError::invalid(path.child("completions"), shown(spec, "completions"), detail));
        }
    }
    if some(spec, "selector") != some(was, "selector") {
        let found = sorted(&shown(spec, "selector"));
        errs.push(FieldError::invalid(path.child("selector"), found, super::check::IMMUTABLE));
    }
    let waiting = flag(was, "suspend") && meta::at(old, &["status", "startTime"]).is_none_or(Value::is_null);
    if fixed_template(spec, waiting) != fixed_template(was, waiting) {
        errs.push(FieldError::invalid(path.child("template"), shown(spec, "template"), super::check::IMMUTABLE));
    }
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        immutable(errs, spec, was, key, &path);
    }
}

/// The part of the template that may not change.
fn fixed_template(spec: &Value, waiting: bool) -> Value {
    let mut template = shown(spec, "template");
    if waiting {
        for (holder, keys) in [
            ("/metadata", &["labels", "annotations"] as &[&str]),
            ("/spec", &["nodeSelector", "affinity", "tolerations", "schedulingGates"]),
        ] {
            if let Some(map) = template.pointer_mut(holder).and_then(Value::as_object_mut) {
                map.retain(|key, _| !keys.contains(&key.as_str()));
            }
        }
        for list in ["/spec/containers", "/spec/initContainers"] {
            for container in template.pointer_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                container.as_object_mut().map(|map| map.shift_remove("resources"));
            }
        }
    }
    template
}

pub(super) fn cron_job(errs: &mut Errors, obj: &Value) {
    let (spec, path) = (spec_of(obj), Path::new("spec"));
    if required(errs, spec, "schedule", &path) {
        let schedule = text(spec, "schedule");
        if schedule.contains("TZ") {
            let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errs.push(FieldError::invalid(path.child("schedule"), schedule, detail));
        } else if let Err(why) = cron(schedule) {
            errs.push(FieldError::invalid(path.child("schedule"), schedule, why));
        }
    }
    non_negative(errs, spec, "startingDeadlineSeconds", &path);
    if some(spec, "timeZone").is_some_and(|zone| zone == "") {
        errs.push(FieldError::invalid(path.child("timeZone"), "", "timeZone must be nil or non-empty string"));
    }
    super::check::required_one_of(errs, spec, "concurrencyPolicy", &path, &["Allow", "Forbid", "Replace"]);
    let at = path.child("jobTemplate").child("spec");
    let job = meta::at(spec, &["jobTemplate", "spec"]).unwrap_or(&Value::Null);
    job_spec(errs, job, &at);
    if let Some(selector) = some(job, "selector") {
        errs.push(FieldError::invalid(at.child("selector"), selector.clone(), "`selector` will be auto-generated"));
    }
    if flag(job, "manualSelector") {
        errs.push(FieldError::not_supported(at.child("manualSelector"), true, &["false"]));
    }
    non_negative(errs, spec, "successfulJobsHistoryLimit", &path);
    non_negative(errs, spec, "failedJobsHistoryLimit", &path);
}

/// The limit on the name holds for new cron jobs only.
pub(super) fn cron_job_name(errs: &mut Errors, obj: &Value) {
    if meta::name(obj).len() > CRON_NAME_LEN_MAX {
        let detail = format!("must be no more than {CRON_NAME_LEN_MAX} characters");
        errs.push(FieldError::invalid("metadata.name", meta::name(obj), detail));
    }
}

/// Whether a schedule can be read: five fields, or a word such as `@hourly`.
fn cron(schedule: &str) -> Result<(), String> {
    const FIELDS: [(i64, i64, &[&str]); 5] = [
        (0, 59, &[]),
        (0, 23, &[]),
        (1, 31, &[]),
        (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
        (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
    ];
    if let Some(word) = schedule.strip_prefix('@') {
        let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        return match known.contains(&word) || word.starts_with("every ") {
            true => Ok(()),
            false => Err(format!("unrecognized descriptor: {schedule}")),
        };
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != FIELDS.len() {
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    for (field, (low, high, words)) in fields.iter().zip(FIELDS) {
        for part in field.split(',') {
            cron_part(part, low, high, words)?;
        }
    }
    Ok(())
}

fn cron_part(part: &str, low: i64, high: i64, words: &[&str]) -> Result<(), String> {
    let number = |text: &str| -> Result<i64, String> {
        if let Some(at) = words.iter().position(|w| w.eq_ignore_ascii_case(text)) {
            return Ok(at as i64 + low);
        }
        text.parse()
            .map_err(|_| format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
    };
    let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
    let (first, last) = match range {
        "*" | "?" => (low, high),
        range => {
            let (first, last) = range.split_once('-').map_or((range, None), |(a, b)| (a, Some(b)));
            let first = number(first)?;
            let last = match last {
                Some(last) => number(last)?,
                None if step.is_some() => high,
                None => first,
            };
            (first, last)
        }
    };
    if step.map(number).transpose()? == Some(0) {
        return Err(format!("step of range should be a positive number: {part}"));
    }
    if first < low {
        return Err(format!("beginning of range ({first}) below minimum ({low}): {part}"));
    }
    if last > high {
        return Err(format!("end of range ({last}) above maximum ({high}): {part}"));
    }
    if first > last {
        return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 1-3 1,15 jan-mar mon", "@hourly", "@every 1h"] {
            assert_eq!(cron(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("x", "expected exactly 5 fields, found 1: [x]"),
            ("61 * * * *", "end of range (61) above maximum (59): 61"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("@never", "unrecognized descriptor: @never"),
        ] {
            assert_eq!(cron(bad), Err(why.into()), "{bad}");
        }
    }

    #[test]
    fn indexes() {
        for (text, expect) in
            [("0,2-4", Ok(4)), ("", Ok(0)), ("3,1", Err("non-increasing order, previous: 3, current: 1"))]
        {
            assert_eq!(count_indexes(text, 5), expect.map_err(String::from), "{text}");
        }
    }
}
