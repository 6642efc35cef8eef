//! The recipe for a tokio `main` that has worker processes.

fn square(n: u64) -> u64 {
    n * n
}
unsync::register!(square);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    unsync::init();
    tokio::runtime::Runtime::new()?.block_on(async {
        let squares = unsync::join_all((0..100).map(|n| unsync::cpu(square, (n,)))).await?;
        assert_eq!(squares.iter().sum::<u64>(), 328_350);
        Ok(())
    })
}
