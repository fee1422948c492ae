#!/usr/bin/env bash
# Runs the pool's part of the suite behind PgBouncer, with DB_POOLER=auto. What is left out is named
# here, with the reason.
#   [MILLPOND_TEST_TLS=1] tests/behind_pooler.sh transaction|session
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in transaction | session) ;; *) echo "transaction or session?" >&2 && exit 2 ;; esac

# They look at the server's sessions. Behind a pooler these are the pooler's: it keeps them when a
# client leaves, and closes the client's when one ends.
sessions=(
    callers::a_borrower_without_time_leaves_the_cleaning_to_others
    callers::a_pool_that_ends_with_its_thread_is_closed
    callers::an_idle_connection_that_the_server_ended_is_replaced_without_a_call
    callers::where_a_thread_may_not_block_every_call_says_so_and_no_drop_panics
    changes::a_session_whose_buffers_have_grown_huge_is_closed_when_it_comes_back
    checkout::a_caller_without_time_does_not_cost_the_pool_its_connections
    embedders::a_detached_connection_leaves_its_place_to_another
    embedders::a_pool_is_resized_under_load_and_serves_its_line
    embedders::evicted_connections_are_replaced_and_nobody_notices
    peers::a_close_without_time_closes_what_is_idle_and_cuts_what_is_lent_out
    peers::a_dropped_pool_closes_its_connections_and_its_threads_let_go_of_it
    peers::a_killed_idle_connection_is_replaced_unasked
    peers::a_pool_closed_at_any_moment_of_its_opening_has_nothing_left_when_that_returns
    peers::a_pool_closed_while_it_opens_a_connection_leaves_none_behind
    peers::an_idle_connection_that_dies_leaves_the_figures_unasked
    peers::an_on_connect_that_failed_leaves_no_backend_and_works_later
    peers::idle_connections_that_are_too_old_are_closed_one_by_one_and_refilled_unasked
    peers::of_several_idle_connections_only_the_killed_one_goes
    peers::the_figures_agree_at_every_look_while_connections_are_killed_under_load
    peers::the_minimum_is_idle_beside_those_in_use_up_to_the_maximum
    peers::try_get_passes_over_dead_connections
    sessions::a_burst_shrinks_to_the_minimum_without_reopening
    sessions::a_busy_connection_is_retired_at_its_age
    sessions::a_database_that_lets_nobody_in_takes_no_connection_away
    sessions::the_minimum_is_opened_ahead_and_kept
)
# Nothing is set on a connection that others use as well, and what a statement or a borrower leaves
# there is not taken away: the connection is closed, and the pooler cleans up in its own way.
settings=(
    callers::what_a_statement_leaves_behind_does_not_reach_the_next_caller
    callers::with_reset_always_what_functions_hide_is_taken_away_too
    peers::an_on_connect_that_leaves_a_transaction_open_is_refused_with_the_reason
    peers::isolation_and_read_only_go_back_also_where_a_function_has_set_them
    retry::a_lone_begin_is_refused_and_a_lone_set_does_not_stay
    retry::a_timeout_of_one_call_may_be_shorter_or_longer_or_off
    retry::the_servers_statement_timeout_is_named_with_the_statement
    retry::what_is_left_of_a_calls_time_is_the_servers_timeout_of_its_transaction
    sessions::a_slow_write_is_a_timeout_also_where_its_rows_are_of_a_type_to_be_looked_up
    sessions::options_of_the_url_win_over_a_default_but_not_over_a_setting
    sessions::startup_options_are_set_without_a_statement_and_on_connect_runs_once
    sessions::what_a_raw_borrower_leaves_behind_is_gone
)
# They are about statements that are prepared by name, which the pool does not do here, or which the
# driver does for a borrower.
names=(
    callers::an_on_connect_that_prepares_does_not_cost_the_connection_at_every_loan
    changes::borrowers_who_take_all_prepared_statements_away_cost_no_caller_its_call
    embedders::a_helper_runs_inside_a_transaction_and_outside
    peers::one_lent_out_when_the_pool_is_dropped_works_and_is_closed_when_it_comes_back
    peers::what_a_borrower_prepared_by_name_is_gone
    sessions::statements_stay_prepared_through_a_cleaning_and_are_prepared_again_after_deallocate
)
# It is the pooler that refuses a login, in its own words (`pooler::a_login_that_the_pooler_refuses_..`),
# and LISTEN is refused.
words=(
    callers::a_wrong_password_is_said_when_it_is_known
    embedders::a_listener_hears_and_says_when_it_may_have_missed_something
    embedders::what_cannot_be_listened_to_is_refused
    health::what_is_wrong_is_named
    sessions::where_the_server_has_no_room_for_one_more_another_is_closed_first
)
skips=()
for name in "${sessions[@]}" "${settings[@]}" "${names[@]}" "${words[@]}"; do
    skips+=(--skip "$name")
done

MILLPOND_TEST_POOLER=$1 cargo test --features lab --test suite -- answers:: callers:: changes:: checkout:: \
    commit:: embedders:: fork:: health:: keyed:: peers:: retry:: sessions:: wire:: "${skips[@]}"
