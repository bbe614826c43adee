// The last moment at which a request can be kept back: there is a connection for it, and nothing of it is written yet.
// Requests wait for connections inside of undici, where nobody else can call them off without ending a connection.

import type { Dispatcher } from 'undici'

/**
 * For `compose` of a dispatcher.
 *
 * @param mayGo asked for each request; if it says no the request fails, and its connection is there for the next one
 */
export function onlyIf(mayGo: () => boolean): Dispatcher.DispatcherComposeInterceptor {
  return (dispatch) => (options, handler) =>
    dispatch(options, {
      onRequestStart(controller, context) {
        if (!mayGo()) throw new Error('kept back')
        handler.onRequestStart?.(controller, context)
      },
      onRequestUpgrade: (...values) => handler.onRequestUpgrade?.(...values),
      onResponseStart: (...values) => handler.onResponseStart?.(...values),
      onResponseData: (...values) => handler.onResponseData?.(...values),
      onResponseEnd: (...values) => handler.onResponseEnd?.(...values),
      onResponseError: (...values) => handler.onResponseError?.(...values),
    })
}
