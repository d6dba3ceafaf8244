"""List which functions of BFCL's stateful APIs only read and which change state; a test checks this with all right calls."""

from __future__ import annotations

_READS = """
    cat diff du find grep ls pwd sort tail wc
    absolute_value add divide imperial_si_conversion logarithm max_value mean min_value multiply percentage power round_number
    si_unit_conversion square_root standard_deviation subtract sum_values
    get_message_stats get_user_id list_users message_get_login_status search_messages view_messages_sent
    get_tweet get_tweet_comments get_user_stats get_user_tweets list_all_following posting_get_login_status search_tweets
    get_ticket get_user_tickets ticket_get_login_status
    filter_stocks_by_price get_account_info get_available_stocks get_current_time get_order_details get_order_history get_stock_info
    get_symbol_by_name get_transaction_history get_watchlist notify_price_change trading_get_login_status
    compute_exchange_rate contact_customer_support get_all_credit_cards get_booking_history get_budget_fiscal_year
    get_credit_card_balance get_flight_cost get_nearest_airport_by_city list_all_airports retrieve_invoice travel_get_login_status
    verify_traveler_information
    check_tire_pressure displayCarStatus display_log estimate_distance estimate_drive_feasibility_by_mileage find_nearest_tire_shop
    gallon_to_liter get_current_speed get_outside_temperature_from_google get_outside_temperature_from_weather_com
    get_zipcode_based_on_city liter_to_gallon
"""
READS = frozenset(_READS.split())
"""Only look, or compute."""
_CHANGES = """
    cd cp echo mkdir mv rm rmdir touch
    add_contact delete_message message_login send_message
    authenticate_twitter comment follow_user mention post_tweet retweet unfollow_user
    close_ticket create_ticket edit_ticket logout resolve_ticket ticket_login
    add_to_watchlist cancel_order fund_account place_order remove_stock_from_watchlist trading_login trading_logout
    withdraw_funds
    authenticate_travel book_flight cancel_booking purchase_insurance register_credit_card set_budget_limit
    activateParkingBrake adjustClimateControl fillFuelTank lockDoors pressBrakePedal releaseBrakePedal setCruiseControl setHeadlights
    set_navigation startEngine
"""
CHANGES = frozenset(_CHANGES.split())
"""Change what later calls meet: files, orders, bookings, the car, who is logged in, the working directory."""
