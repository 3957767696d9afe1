-- Transactions that are open on the interval are not waited for any more: proxies end them with 40001. Set while the hold lasts, never taken back.
ALTER TABLE foreshard.hold ADD COLUMN ends_transactions boolean NOT NULL DEFAULT false;
