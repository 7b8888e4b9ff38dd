//! The store's errors as etcd's: clients compare both the code and the text.

use skiff_store::{Error, MemberCode};
use tonic::{Code, Status};

macro_rules! errors {
    ($($name:ident = $code:ident, $text:literal;)*) => {
        $(pub fn $name() -> Status { Status::new(Code::$code, concat!("etcdserver: ", $text)) })*
    };
}

errors! {
    empty_key = InvalidArgument, "key is not provided";
    key_not_found = InvalidArgument, "key not found";
    value_provided = InvalidArgument, "value is provided";
    lease_provided = InvalidArgument, "lease is provided";
    too_many_ops = InvalidArgument, "too many operations in txn request";
    duplicate_key = InvalidArgument, "duplicate key given in txn request";
    invalid_sort = InvalidArgument, "invalid sort option";
    compacted = OutOfRange, "mvcc: required revision has been compacted";
    future_revision = OutOfRange, "mvcc: required revision is a future revision";
    no_space = ResourceExhausted, "mvcc: database space exceeded";
    lease_not_found = NotFound, "requested lease not found";
    lease_exists = FailedPrecondition, "lease already exists";
    ttl_too_large = OutOfRange, "too large lease TTL";
    peer_url_exists = FailedPrecondition, "Peer URLs already exists";
    member_exists = FailedPrecondition, "member ID already exist";
    not_enough_started = FailedPrecondition, "re-configuration failed due to not enough started members";
    bad_urls = InvalidArgument, "given member URLs are invalid";
    member_not_found = NotFound, "member not found";
    not_learner = FailedPrecondition, "can only promote a learner member";
    learner_not_ready = FailedPrecondition, "can only promote a learner member which is in sync with leader";
    request_too_large = InvalidArgument, "request is too large";
    no_leader = Unavailable, "no leader";
    not_leader = FailedPrecondition, "not leader";
    stopped = Unavailable, "server stopped";
    timeout = Unavailable, "request timed out";
    corrupt = DataLoss, "corrupt cluster";
    bad_transferee = FailedPrecondition, "bad leader transferee";
    auth_not_enabled = FailedPrecondition, "authentication is not enabled";
    user_not_found = FailedPrecondition, "user name not found";
    role_not_found = FailedPrecondition, "role name not found";
    root_user_missing = FailedPrecondition, "root user does not exist";
}

/// What a client is told.
pub fn status(error: Error) -> Status {
    match error {
        Error::Compacted { .. } => compacted(),
        Error::Future { .. } => future_revision(),
        Error::KeyNotFound(_) => key_not_found(),
        Error::DuplicateKey(_) => duplicate_key(),
        Error::TooLarge { .. } => request_too_large(),
        Error::NoSpace => no_space(),
        Error::LeaseNotFound(_) => lease_not_found(),
        Error::LeaseExists(_) => lease_exists(),
        Error::NoLeader => no_leader(),
        Error::NotLeader => not_leader(),
        Error::Unknown(_) => timeout(),
        Error::Stopped => stopped(),
        Error::Failed(_) => corrupt(),
        Error::Fenced { .. } => Status::unavailable("etcdserver: leader changed"),
        Error::Member { code, problem, .. } => match code {
            MemberCode::NotFound => member_not_found(),
            MemberCode::AddressTaken => peer_url_exists(),
            MemberCode::NameTaken => member_exists(),
            MemberCode::BadAddress => bad_urls(),
            MemberCode::NotLearner => not_learner(),
            MemberCode::NotInSync => learner_not_ready(),
            MemberCode::NotEnoughStarted => not_enough_started(),
            MemberCode::BadTransferee => bad_transferee(),
            MemberCode::Undecided => Status::unavailable(format!("etcdserver: request timed out: {problem}")),
        },
    }
}
