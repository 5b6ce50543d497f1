//! One API server for all, since it takes its time to start.

use tokio::net::TcpListener;

use crate::bare::programs;
use crate::bed::Bed;
use crate::{certificates, gone, leaving, replicas, reports};

#[tokio::test]
async fn control_plane_on_a_real_api_server_does_what_it_promises() {
    let Some(programs) = programs() else { return };
    let mut bed = Bed::start(programs).await;
    for (name, instance) in [("n1", "i-1"), ("n2", "i-2")] {
        bed.node(name, instance).await;
        bed.agents(&format!("agents-{name}"), name).await;
    }
    let ipam = TcpListener::bind("127.0.0.1:0").await.unwrap();

    let (a, b) = replicas::that_begin_at_once_make_one_authority_and_one_leads(&bed, &ipam).await;

    certificates::node_and_services_get_their_names(&bed, &a).await;
    certificates::bad_proofs_get_nothing(&bed, &b).await;
    certificates::caller_without_one_reaches_nothing_else(&a).await;
    let speakers = reports::Speakers::new(&bed, &a, &b).await;
    reports::node_speaks_of_itself_alone(&bed, &speakers).await;
    reports::conditions_are_written_and_the_taint_goes_with_the_first_serving(&bed, &speakers)
        .await;
    reports::annotations_reach_the_pod_and_not_its_successor(&bed, &speakers).await;
    reports::event_is_counted_up_by_both_replicas(&bed, &speakers).await;
    reports::rights_of_the_control_plane_end_at_what_it_needs(&bed).await;
    leaving::deadline_names_who_is_waited_for(&bed).await;
    leaving::uninstallation_ends_when_all_have_left(&bed, &speakers).await;
    gone::instance_of_a_vanished_node_is_declared_until_it_is_done(&bed, ipam, [&a, &b]).await;
    replicas::report_is_put_off_while_the_api_server_is_away(&mut bed, &speakers).await;
    replicas::lead_goes_over_when_its_holder_ends(&bed, a, b).await;
}
