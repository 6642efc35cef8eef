#!/usr/bin/env bash
# Breaks the library in one place after the other, in a copy, and runs the models that guard it: each has to find it.
# `./mutations.sh NAME…` runs those with NAME in their titles. Fails if a text to be replaced is no longer there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/tests/models/target}

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir -p "$copy/tests/models"
cp -r src "$copy/src"
cp -r tests/models/{Cargo.toml,Cargo.lock,src} "$copy/tests/models"
wanted=("$@")
found=0

# mutation TITLE FILE MODELS: standard input has the text, a line with ---, and what takes its place.
mutation() {
    local title=$1 file=src/$2 models=$3 input text replacement source log=$copy/log
    input=$(cat)
    if ((${#wanted[@]})) && ! grep -qF "${wanted[@]/#/-e}" <<<"$title"; then return; fi
    text=${input%%$'\n---'*} replacement=${input#*$'\n---'} replacement=${replacement#$'\n'}
    source=$(cat "$file")
    [[ $source == *"$text"* ]] || { echo "FAILED: $title: the text is no longer in $file"; exit 1; }
    printf '%s\n' "${source/"$text"/"$replacement"}" >"$copy/$file"
    cargo build --quiet --manifest-path "$copy/tests/models/Cargo.toml" 2>"$log" ||
        { cat "$log"; echo "FAILED: $title: does not compile"; exit 1; }
    cp "$file" "$copy/$file"
    if timeout 300 "$CARGO_TARGET_DIR/debug/unsync-models" "$models" >"$log"; then
        echo "FAILED: $title: not found by the models with \"$models\""
        exit 1
    fi
    grep -q '^FAILED' "$log" || { echo "FAILED: $title: the models with \"$models\" do not end"; exit 1; }
    printf '%-52s found by %s\n' "$title" "$(sed -n 's/^FAILED: \(.*, schedule [0-9]*\).*/\1/p' "$log")"
    found=$((found + 1))
}

mutation "slot: the waiter is not notified" slot.rs "slot: complete, wait" <<'END'
                    self.finished.notify_all();
---
END

mutation "slot: notified without the gate" slot.rs "slot: complete, wait" <<'END'
                    drop(lock(&self.gate));
---
END

mutation "slot: looked at before the waker is left" slot.rs "slot: complete, poll" <<'END'
        if !self.is_done() {
            // Cloning
---
        if !self.is_done() {
            drop(self.replace_waker(Some(cx.waker().clone())));
            return Poll::Pending;
        }
        if !self.is_done() {
            // Cloning
END

mutation "slot: the first waker is kept" slot.rs "slot: complete, poll with another" <<'END'
            Stage::Pending { waker, .. } => mem::replace(waker, new),
---
            Stage::Pending { waker: Some(_), .. } => new,
            Stage::Pending { waker, .. } => mem::replace(waker, new),
END

mutation "slot: a value that nobody can see is kept" slot.rs "slot: complete, drop" <<'END'
            if wanted {
                *place = value.take();
            }
            error.take()
---
            *place = value.take();
            error.take()
END

mutation "slot: watches a beginning that was" slot.rs "slot: begin" <<'END'
        if queued == Err(BEGUN) {
---
        if queued == Err(BEGUN) && false {
END

mutation "slot: the tie is looked at before the drop" slot.rs "slot: tie" <<'END'
        let mut state = lock(&self.state);
        state.stage.is_wanted()?;
        let before = mem::replace(&mut state.stage, Stage::Detached);
        drop(state);
        discard(before);
---
        let tied = self.is_tied();
        let mut state = lock(&self.state);
        state.stage.is_wanted()?;
        let before = mem::replace(&mut state.stage, Stage::Detached);
        drop(state);
        discard(before);
        return Some(tied);
END

mutation "shared: only one clone is woken" shared.rs "slot: share" <<'END'
        for waker in wakers.into_values() {
---
        for waker in wakers.into_values().take(1) {
END

mutation "fate: decided in two steps" stop.rs "fate" <<'END'
        self.0
            .compare_exchange(Fate::OPEN, fate, Ordering::AcqRel, Ordering::Acquire)
---
        match self.0.load(Ordering::Acquire) {
            Fate::OPEN => {
                self.0.store(fate, Ordering::Release);
                Ok(Fate::OPEN)
            }
            decided => Err(decided),
        }
END

mutation "promise: dropped without an outcome" unfuture.rs "promise: drop, wait" <<'END'
impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
---
impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        return;
END

mutation "block_on: the token alone counts" block_on.rs "block_on" <<'END'
        if SPIN.attempt(take).is_some() {
            return true;
        }
---
        if deadline.is_none() {
            blocking(thread::park);
            return take().is_some();
        }
END

mutation "ambient: the flag alone decides" ambient/mod.rs "ambient: start, busy" <<'END'
        if self.ticks % LOOK == 0 || SENT.load(Ordering::Acquire) {
---
        if SENT.load(Ordering::Acquire) {
END

mutation "ambient: unqueued by a store" ambient/task.rs "ambient: two wakes" <<'END'
        task.queued.swap(false, Ordering::AcqRel);
---
        task.queued.store(false, Ordering::Relaxed);
END

mutation "ambient: a cancelled task is polled" slot.rs "ambient: cancel, poll" <<'END'
        let ends = fate.is_none_or(Fate::end);
---
        let ends = fate.is_none_or(Fate::end) || true;
END

mutation "ambient: a stop before the start is forgotten" ambient/mod.rs "ambient: stop" <<'END'
                self.later.push_back((task, reason));
---
END

mutation "ambient: an end is decided outside the lock" slot.rs "ambient: cancel, end" <<'END'
        let mut state = lock(&self.state);
        // Decided
---
        let _ = fate.is_none_or(Fate::end);
        let mut state = lock(&self.state);
        // Decided
END

mutation "ambient: a lost start resolves nothing" ambient/task.rs "ambient: start, close" <<'END'
            raw.task().fail(drop_body(Some(body), ended));
---
            drop(drop_body(Some(body), ended));
END

mutation "timer: a waker is looked for outside the lock" ambient/timer.rs "timer: fire, another" <<'END'
            let replaced = lock(cell).replace(waker);
---
            let replaced = lock(cell).clone();
            drop(lock(cell).replace(waker));
END

mutation "timer: a due timer wakes nobody" ambient/timer.rs "timer: fire, park" <<'END'
        if let Some(waker) = waker {
            discard
---
        if let Some(waker) = waker.filter(|_| false) {
            discard
END

mutation "timer: none is set after a reset" ambient/timer.rs "timer: fire, reset" <<'END'
            self.waker = Some(Arc::new(Mutex::new(waker)));
            self.start();
---
            self.waker = Some(Arc::new(Mutex::new(waker)));
END

mutation "pool: a claimed thread is not woken" threads/mod.rs "pool: submit, park" <<'END'
        Action::Wake => CLAIMED.notify_one(),
---
        Action::Wake => {}
END

mutation "pool: parks without a second look" threads/mod.rs "pool: submit, park" <<'END'
        if state.queue.is_empty() || state.counts.is_exceeded() {
            state.counts.idle += 1;
---
        {
            state.counts.idle += 1;
END

mutation "pool: retires though it is claimed" threads/mod.rs "pool: submit, retire" <<'END'
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            if state.counts.claimed == 0 {
---
            let (woken, time) = woken.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if time {
                return state;
            }
            if state.counts.claimed == 0 {
END

mutation "pool: looks outside the lock whether it is closed" threads/mod.rs "pool: submit, close" <<'END'
    if is_closed() {
        drop(state);
        return queued
---
    let closed = is_closed();
    drop(state);
    state = lock(&STATE);
    if closed {
        drop(state);
        return queued
END

mutation "pool: a stopped job runs" threads/job.rs "pool: run" <<'END'
        let closure = self.fate.end().then(|| self.take()).flatten();
---
        self.fate.end();
        let closure = self.take();
END

mutation "pool: a blocked thread counts" threads/mod.rs "pool: nested" <<'END'
    state.counts.blocked += 1;
    let action = state.assign();
---
    state.counts.blocked += 1;
    let action = Action::Nothing;
END

mutation "ready-set: an end while it is asked is forgotten" combine.rs "ready-set" <<'END'
                    .is_ready()
            };
---
                    .is_ready()
                    && false
            };
END

mutation "ready-set: looked at outside the lock" combine.rs "ready-set" <<'END'
            let mut ended = self.signal.lock();
            if !ended.members.is_empty() {
---
            let is_empty = self.signal.lock().members.is_empty();
            let mut ended = self.signal.lock();
            if !is_empty {
END

mutation "pool: a shutdown does not wait for a sweep" threads/mod.rs "pool: cancel, close" <<'END'
    let state = lock(&STATE);
    CLOSED.store(true, Ordering::Relaxed);
    drop(state);
---
    CLOSED.store(true, Ordering::Relaxed);
END

mutation "limit: work that waits is forgotten" limit.rs "limit: submit, submit" <<'END'
        self.waiting.insert(at, (place, Some(start)));
---
END

mutation "limit: work with a permit is not started" limit.rs "limit: submit, submit" <<'END'
            return Some(start);
---
            return None;
END

mutation "limit: the cancelled keep their place" limit.rs "limit: release, cancel" <<'END'
            if first.is_some() {
                return first;
            }
            self.empty -= 1;
---
            return first;
END

mutation "limit: work that comes during a shutdown waits" limit.rs "limit: submit, close" <<'END'
        let start = if threads::is_closed() {
---
        let start = if false {
END

mutation "limit: what waits is forgotten in a shutdown" threads/mod.rs "limit: submit, close" <<'END'
    state.queue.extend(elsewhere);
---
    drop(elsewhere);
END

echo "all $found found"
