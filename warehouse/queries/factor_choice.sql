-- At most one row: the parameters of the choice $choice.
select choice, parameters from factor_choices where choice = $choice
