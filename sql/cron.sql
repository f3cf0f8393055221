-- The pg_cron jobs. Applied by `pgherald migrate` where the extension is there, as the migrating role, in whose name they
-- run. Scheduling a job of the same name again replaces it.
select cron.schedule('herald-evaluate', '* * * * *', 'select herald.evaluate()');
select cron.schedule('herald-maintain', '17 3 * * *', 'call herald.maintain()');
