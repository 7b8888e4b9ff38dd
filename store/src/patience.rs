//! How long a follower bears its leader's silence: the shortest time that is safe, one member a little longer than the other.
//!
//! Raft draws it at random between that time and twice as long, so that votes seldom split; a frozen leader is then replaced late. Members
//! that take turns by their ids do both better. A turn is longer than an election takes; if the first cannot win, the next stands then.

use crate::types::MemberId;

/// Ticks of a turn. With 25 ms a tick, members stand 25 to 75 ms apart.
const TURN_TICKS: usize = 2;

/// In ticks; less than twice the shortest, which is Raft's own bound. `dice` keeps those apart that believe it to be the same turn.
pub fn ticks(shortest: usize, id: MemberId, leader: MemberId, voters: &[MemberId], dice: usize) -> usize {
    let turn = voters.iter().filter(|voter| **voter != leader && **voter < id).count();
    (shortest + turn * TURN_TICKS + dice % TURN_TICKS).min(2 * shortest - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_take_turns() {
        let check =
            |id, leader, dice, expect| assert_eq!(ticks(20, id, leader, &[3, 5, 9], dice), expect, "{id} {leader}");
        check(3, 5, 0, 20);
        check(9, 5, 0, 22);
        check(9, 5, 1, 23);
        check(9, 0, 7, 25);
        check(4, 3, 0, 20);
        let many: Vec<_> = (1..40).collect();
        assert_eq!(ticks(20, 40, 1, &many, 0), 39);
    }
}
