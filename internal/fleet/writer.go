package fleet

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// maxBatch bounds one commit, and so how long the first in it waits for the last.
const maxBatch = 512

// errCommit is the one error after which the work may be done all the same.
var errCommit = errors.New("commit")

var errClosed = errors.New("the fleet's database is closed")

// A writer is the one goroutine that writes. Those who wait share one commit,
// and with it one sync of the disk: sixty-four clients get about sixteen times
// the rate of one commit each.
type writer struct {
	db    *sql.DB
	queue chan *write
	stop  chan struct{}
	ended chan struct{}
}

// write is one caller's part of a commit.
type write struct {
	do    func(context.Context, *sql.Tx) error
	after func() // called in the order of the commits, before done
	done  chan error
	err   error
}

func startWriter(db *sql.DB) *writer {
	w := &writer{db: db, queue: make(chan *write), stop: make(chan struct{}), ended: make(chan struct{})}
	go w.run()
	return w
}

// close ends the writer after the commit under way.
func (w *writer) close() {
	close(w.stop)
	<-w.ended
}

// do runs fn in a transaction that others may share, and returns once it is
// durable, or nothing of fn has happened. If ctx ends while the commit is under
// way the outcome is not known, so writes must be such that they can be
// repeated. Once it is durable, after runs, which may be nil: there the memory
// follows the database, in the order of the commits.
func (w *writer) do(ctx context.Context, fn func(context.Context, *sql.Tx) error, after func()) error {
	job := &write{do: fn, after: after, done: make(chan error, 1)}
	select {
	case w.queue <- job:
	case <-w.ended:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-job.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *writer) run() {
	defer close(w.ended)
	for {
		var batch []*write
		select {
		case job := <-w.queue:
			batch = append(batch, job)
		case <-w.stop:
			return
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case job := <-w.queue:
				batch = append(batch, job)
			default:
				more = false
			}
		}
		w.commit(batch)
	}
}

func (w *writer) commit(batch []*write) {
	err := w.transact(batch)
	for _, job := range batch {
		if err != nil {
			job.err = err
		}
		if diskFull(job.err) {
			job.err = fmt.Errorf("%w: %w", ErrFull, job.err)
		}
		if job.err == nil && job.after != nil {
			job.after()
		}
		job.done <- job.err
	}
}

// transact runs all of batch in one transaction. A job that fails is undone
// alone, behind its savepoint, and has its error; an error of transact itself
// means that nothing was done, unless it is errCommit.
func (w *writer) transact(batch []*write) error {
	ctx := context.Background() // one caller who leaves must not undo the others' work
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	defer tx.Rollback() // no effect after Commit
	for _, job := range batch {
		if _, err := tx.ExecContext(ctx, `SAVEPOINT job`); err != nil {
			return fmt.Errorf("set a savepoint: %w", err)
		}
		if job.err = job.do(ctx, tx); job.err != nil {
			if _, err := tx.ExecContext(ctx, `ROLLBACK TO SAVEPOINT job`); err != nil {
				return fmt.Errorf("undo after %w: %w", job.err, err)
			}
		}
		if _, err := tx.ExecContext(ctx, `RELEASE SAVEPOINT job`); err != nil {
			return fmt.Errorf("release a savepoint: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("%w: %w", errCommit, err)
	}
	return nil
}
