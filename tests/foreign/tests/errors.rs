//! Errors of this library inside those of anyhow and thiserror.

use unsync::ErrorKind;

fn read(path: &'static str) -> unsync::Unfuture<std::io::Result<String>> {
    unsync::thread(move || std::fs::read_to_string(path))
}

#[test]
fn anyhow_takes_them() {
    fn length(path: &'static str) -> anyhow::Result<usize> {
        use anyhow::Context;
        Ok(read(path)
            .result()?
            .with_context(|| format!("reading {path}"))?
            .len())
    }
    assert!(length("Cargo.toml").unwrap() > 0);
    let error = length("missing").unwrap_err();
    assert_eq!(error.to_string(), "reading missing");
    let panicked = unsync::thread(|| panic!("out of cheese"));
    let error = anyhow::Error::from(panicked.result().map(|(): ()| ()).unwrap_err());
    let inner = error.downcast_ref::<unsync::Error>().unwrap();
    assert_eq!(inner.kind(), ErrorKind::Panicked);
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("cannot read it")]
    Io(#[from] std::io::Error),
    #[error("it was not read")]
    Work(#[from] unsync::Error),
}

#[test]
fn thiserror_takes_them() {
    fn load(path: &'static str) -> Result<String, LoadError> {
        Ok(read(path).result()??)
    }
    assert!(load("Cargo.toml").is_ok());
    assert!(matches!(load("missing"), Err(LoadError::Io(_))));
    fn cancelled() -> Result<(), LoadError> {
        let nap = unsync::spawn(unsync::sleep(std::time::Duration::MAX));
        nap.cancel();
        Ok(nap.result()?)
    }
    let Err(LoadError::Work(error)) = cancelled() else {
        panic!("it was cancelled");
    };
    assert_eq!(error.kind(), ErrorKind::Cancelled);
}

#[test]
fn boxed_errors_keep_their_kind() {
    fn failed() -> Result<(), Box<dyn std::error::Error>> {
        Err(unsync::Error::new(ErrorKind::Abandoned, "no such luck"))?
    }
    let error = failed().unwrap_err();
    let inner = error.downcast_ref::<unsync::Error>().unwrap();
    assert_eq!(inner.kind(), ErrorKind::Abandoned);
}
