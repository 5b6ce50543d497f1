//! What the cloud refuses, told so that a caller can decide.

use ecs_api::action::Action;
use ecs_sim::faults::{Effect, Fault};

use crate::world::{GROUP, VSWITCH, World, new_eni, reason, texts};

fn refuse(code: &str, status: u16) -> Effect {
    Effect::Refuse {
        status,
        code: code.to_owned(),
        message: "User not authorized to operate on the specified resource.".to_owned(),
    }
}

#[tokio::test]
async fn address_of_another_user_is_named() {
    let world = World::new().await;
    let taken = "10.0.0.50".parse().unwrap();
    world
        .sim
        .take_foreign(&VSWITCH.parse().unwrap(), taken)
        .unwrap();
    let id = world.made(1, "10.0.0.10").await;

    let assign = world.assign(2, &id, &["10.0.0.50"], &[]).await.unwrap_err();
    let create = world.create(new_eni(3, "10.0.0.50")).await.unwrap_err();

    for status in [&assign, &create] {
        assert_eq!(reason(status), "REASON_ADDRESS_IN_USE", "{status:?}");
        assert_eq!(
            mesh::status::metadata(status, "address").as_deref(),
            Some("10.0.0.50")
        );
    }
    assert_eq!(world.eni(&id).unwrap().ipv4.len(), 1);
}

#[tokio::test]
async fn address_of_another_of_our_enis_is_named() {
    let world = World::new().await;
    let first = world.made(1, "10.0.0.10").await;
    world.assign(2, &first, &["10.0.0.50"], &[]).await.unwrap();
    let second = world.made(3, "10.0.0.20").await;

    let status = world
        .assign(4, &second, &["10.0.0.49", "10.0.0.50"], &[])
        .await
        .unwrap_err();

    assert_eq!(reason(&status), "REASON_ADDRESS_IN_USE");
    assert_eq!(
        mesh::status::metadata(&status, "address").as_deref(),
        Some("10.0.0.50")
    );
}

#[tokio::test]
async fn addresses_that_are_there_in_part_are_completed() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;
    world.assign(2, &id, &["10.0.0.11"], &[]).await.unwrap();

    let eni = world
        .assign(3, &id, &["10.0.0.11", "10.0.0.12"], &[])
        .await
        .unwrap();

    assert_eq!(eni.ipv4, ["10.0.0.10", "10.0.0.11", "10.0.0.12"]);
}

#[tokio::test]
async fn vswitch_without_room_is_exhausted() {
    let world = World::new().await;
    for (sequence, ip) in [
        (1, "10.0.2.1"),
        (2, "10.0.2.2"),
        (3, "10.0.2.3"),
        (4, "10.0.2.4"),
    ] {
        let mut request = new_eni(sequence, ip);
        request.vswitch_id = "vsw-small".to_owned();
        world.create(request).await.unwrap();
    }

    let mut request = new_eni(5, "");
    request.vswitch_id = "vsw-small".to_owned();
    let status = world.create(request).await.unwrap_err();

    assert_eq!(reason(&status), "REASON_VSWITCH_EXHAUSTED");
}

#[tokio::test]
async fn limits_of_the_instance_type_have_their_own_reasons() {
    let world = World::new().await;
    for sequence in [10, 20, 30] {
        world
            .attached(sequence, &format!("10.0.0.{sequence}"))
            .await;
    }
    let full = world.enis()[0].id.to_string();
    let many: Vec<_> = (100..115).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let fourth = world.made(40, "10.0.0.40").await;

    let eni = world.attach(41, &fourth).await.unwrap_err();
    let address = world.assign(42, &full, &many, &[]).await.unwrap_err();

    assert_eq!(reason(&eni), "REASON_ENI_LIMIT");
    assert_eq!(reason(&address), "REASON_ADDRESS_LIMIT");
}

#[tokio::test]
async fn objects_that_do_not_exist_are_named() {
    let world = World::new().await;
    let mut request = new_eni(1, "");
    request.vswitch_id = "vsw-absent".to_owned();

    let vswitch = world.create(request).await.unwrap_err();
    let eni = world.attach(2, "eni-absent").await.unwrap_err();

    for (status, id, why) in [
        (&vswitch, "vsw-absent", "REASON_VSWITCH_INVALID"),
        (&eni, "eni-absent", "REASON_NOT_FOUND"),
    ] {
        assert_eq!(reason(status), why);
        assert_eq!(mesh::status::metadata(status, "id").as_deref(), Some(id));
    }
}

#[tokio::test]
async fn missing_permission_is_named_and_not_tried_again() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;
    let fault = Fault::on(Action::AttachNetworkInterface, refuse("Forbidden.RAM", 403));
    world.sim.inject_fault(fault);

    let status = world.attach(2, &id).await.unwrap_err();

    assert_eq!(reason(&status), "REASON_CLOUD_FORBIDDEN");
    assert_eq!(
        mesh::status::metadata(&status, "permission").as_deref(),
        Some("ecs:AttachNetworkInterface")
    );
    assert_eq!(world.total(Action::AttachNetworkInterface), 1);
}

// A token that was used for something else is never replaced: it would hide a bug and could do the work twice.
#[tokio::test]
async fn token_used_with_other_parameters_is_invalid_and_stays() {
    let mut world = World::new().await;
    world.made(1, "10.0.0.10").await;
    world.restart().await;

    let mut changed = new_eni(1, "10.0.0.99");
    changed.tags.clear();
    let status = world.create(changed).await.unwrap_err();

    assert_eq!(reason(&status), "REASON_CLOUD_INVALID");
    assert_eq!(world.enis().len(), 1);
}

#[tokio::test]
async fn busy_cloud_is_asked_again() {
    let world = World::new().await;
    let id = world.made(1, "10.0.0.10").await;
    for code in ["OperationConflict", "ServiceUnavailable"] {
        let fault = Fault::on(Action::AttachNetworkInterface, refuse(code, 403)).times(2);
        world.sim.inject_fault(fault);
    }

    assert!(world.attach(2, &id).await.is_ok());
}

#[tokio::test]
async fn malformed_request_names_its_field_and_reaches_no_cloud() {
    let world = World::new().await;
    let mut request = new_eni(1, "10.0.0");
    request.security_group_ids = texts(&[GROUP]);

    let status = world.create(request).await.unwrap_err();

    assert_eq!(reason(&status), "REASON_BAD_FIELD");
    assert_eq!(
        mesh::status::metadata(&status, "field").as_deref(),
        Some("primary_ip")
    );
    assert_eq!(world.total(Action::CreateNetworkInterface), 0);
}
