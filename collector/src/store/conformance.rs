//! What every [`Store`] does, whatever it is made of: one suite for all of them, sentence by sentence of the trait.

use super::Store;

pub(super) mod agents;
pub(super) mod chain;
pub(super) mod clocks;
pub(super) mod coverage;
pub(super) mod flows;
pub(super) mod listings;
pub(super) mod names;
pub(super) mod prevalence;
pub(super) mod processes;
pub(super) mod samples;
pub(super) mod stream;
pub(super) mod visits;

/// Somewhere a store lives; it can be closed and opened again.
pub(super) trait Home {
    type Store: Store;

    fn new() -> Self;
    fn open(&self) -> Self::Store;
}

/// Runs the whole suite on the stores of a [`Home`].
macro_rules! suite {
    ($home:ty) => {
        suite! { $home, agents:
            are_listed_in_the_order_in_which_they_were_added, are_refused_beyond_the_limit, keep_one_host_each,
            are_described_anew_each_time
        }
        suite! { $home, chain:
            is_anchored_with_what_is_stored, refuses_what_does_not_continue_it,
            becomes_another_where_the_past_is_contradicted, goes_on_once_a_break_is_noted,
            is_that_of_the_epoch_that_comes_back, is_broken_by_what_was_changed_on_the_host,
            keeps_few_anchors_of_what_is_long_past
        }
        suite! { $home, clocks:
            are_kept_as_the_stream_and_the_readings_tell, tell_the_moments_of_what_is_new_alone,
            are_written_before_what_a_clock_stamped_that_was_set, tell_whether_a_name_was_resolved_before
        }
        suite! { $home, stream:
            says_that_a_time_happened_twice_whatever_a_ring_that_comes_back_begins_with,
            keeps_what_it_can_read_however_much_is_lost_before_the_first_grade, takes_each_event_once, refuses_what_does_not_continue_it_and_stores_nothing_of_it,
            makes_a_hole_a_loss_of_every_facet, stops_all_recording_where_the_ring_was_made_anew,
            rules_nothing_out_by_the_old_ring_in_a_time_that_happens_twice,
            goes_on_where_an_epoch_was_left, loses_what_it_does_not_know, never_goes_back_in_time,
            outlives_the_program, refuses_numbers_that_no_agent_sends, needs_a_host_that_described_itself,
            grades_it_as_it_is_told_however_often, notes_what_need_not_be_written
        }
        suite! { $home, coverage:
            is_what_the_same_events_come_to_in_a_ledger, is_bounded_however_much_is_lost
        }
        suite! { $home, flows:
            are_found_as_a_plain_search_finds_them, are_cut_to_the_limit_and_counted,
            of_a_process_come_newest_first, are_forgotten_with_their_coverage, are_read_while_others_are_written
        }
        suite! { $home, listings:
            of_flows_are_what_a_plain_search_lists_page_by_page, of_flows_go_on_where_they_were_while_more_comes,
            of_processes_are_the_newest_first_page_by_page, of_processes_find_an_old_one_by_its_connections,
            of_processes_say_what_was_not_read
        }
        suite! { $home, processes:
            are_joined_with_their_end_in_either_order, keep_the_record_that_saw_most, list_their_children_in_order,
            are_found_by_prefix, are_forgotten_when_they_ended, tell_what_they_became,
            get_the_hash_of_their_file_in_either_order, are_told_with_who_signed_their_executable, keep_their_executables_from_being_forgotten
        }
        suite! { $home, prevalence:
            is_what_all_that_was_told_comes_to, costs_no_doubt_where_a_batch_is_refused,
            tells_what_it_was_called_and_what_it_is, is_cut_to_the_limit_and_counted,
            is_remembered_longer_than_what_it_was_made_of, is_bounded_for_each_host
        }
        suite! { $home, visits:
            tell_each_record_that_overlaps_once, tell_what_may_match_a_question, tell_those_of_a_process
        }
        suite! { $home, names:
            stand_for_what_any_host_resolved, are_kept_whole_or_a_loss, tell_flows_by_all_that_is_known,
            tell_the_oldest_connection_without_one, are_forgotten, leave_links_listed
        }
    };
    ($home:ty, $area:ident: $($test:ident),+) => {
        mod $area {
            use super::*;
            $(
                #[test]
                fn $test() {
                    $crate::store::conformance::$area::$test::<$home>();
                }
            )+
        }
    };
}
pub(super) use suite;
