//! The recipe for Ctrl-C: what is done is kept.
#![cfg(unix)]

use std::process::Command;
use std::time::Duration;

use unsync::ErrorKind;

#[test]
fn keeps_what_is_done() {
    let asleep = unsync::spawn(unsync::sleep(Duration::from_secs(3600)));
    let all = unsync::settle_all([unsync::Unfuture::ready(()), asleep]);
    let stop = all.canceller();
    ctrlc::set_handler(move || _ = stop.cancel()).unwrap();

    let own = std::process::id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &own])
            .status()
            .unwrap()
            .success()
    );
    assert!(all.wait_timeout(Duration::from_secs(60)), "Ctrl-C ends it");
    let outcomes = all.result().unwrap();
    assert!(outcomes[0].is_ok());
    assert_eq!(
        outcomes[1].as_ref().unwrap_err().kind(),
        ErrorKind::Cancelled
    );
}
