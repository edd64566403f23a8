package fleet

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"runtime"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite" // also the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// This file holds all that is particular to one database. The statements
// elsewhere and the migrations keep to what SQLite and PostgreSQL share: $N for
// parameters, ON CONFLICT, SAVEPOINT.

//go:embed migrations/*.sql
var migrations embed.FS

// openSQLite opens the database at path and migrates it.
func openSQLite(ctx context.Context, path string) (*sql.DB, error) {
	// It holds the keys of download URLs. SQLite gives its other files the mode of this one.
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	if err := file.Close(); err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	u := url.URL{Scheme: "file", Opaque: url.PathEscape(path), RawQuery: url.Values{
		"_pragma": {
			"busy_timeout(10000)", // milliseconds; another process may be making a copy
			"journal_mode(WAL)",   // readers do not wait for the writer
			"synchronous(FULL)",   // a confirmed report survives a power cut
			"foreign_keys(1)",
		},
		"_txlock": {"immediate"}, // a transaction that will write never fails half-way to become a writer
	}.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, fmt.Errorf("open the database %s: %w", path, err)
	}
	// More readers than cores make this driver slower, not faster. One is the writer's.
	db.SetMaxOpenConns(runtime.NumCPU() + 1)
	db.SetMaxIdleConns(runtime.NumCPU() + 1)

	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		db.Close()
		return nil, err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, files, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		db.Close()
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		db.Close()
		return nil, fmt.Errorf("migrate the database %s: %w", path, err)
	}
	return db, nil
}

// diskFull reports whether err is that there is no room for what was to be written.
func diskFull(err error) bool {
	e, ok := errors.AsType[*sqlite.Error](err)
	return ok && e.Code()&0xff == sqlite3.SQLITE_FULL // the rest of an extended code is detail
}

// scanner reads the columns of one row.
type scanner func(dest ...any) error

// each calls row for every row of a query.
func each(ctx context.Context, db *sql.DB, query string, row func(scanner) error, args ...any) error {
	rows, err := db.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}
