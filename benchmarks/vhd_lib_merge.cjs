// Merge a child into its parent with vhd-lib: `node vhd_lib_merge.cjs PARENT CHILD`, in a folder where it is installed.
// The parent is synced at the end, since a merge that may still be lost is none.
'use strict'

const fs = require('fs')
const { createRequire } = require('module')

const load = createRequire(process.env.VHD_LIB + '/')

// The files of this machine, as vhd-lib asks for them: by name, or by what openFile returned.
const opened = async (file, use) => {
  if (typeof file !== 'string') {
    return use(file.handle)
  }
  const handle = await fs.promises.open(file, 'r+')
  try {
    return await use(handle)
  } finally {
    await handle.close()
  }
}

const handler = {
  openFile: async (path, flags) => ({ handle: await fs.promises.open(path, flags) }),
  closeFile: async file => file.handle.close(),
  getSize: file => opened(file, async handle => (await handle.stat()).size),
  read: (file, buffer, position) =>
    opened(file, async handle => {
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, position)
      return { bytesRead, buffer }
    }),
  write: (file, buffer, position) =>
    opened(file, async handle => {
      let done = 0
      while (done < buffer.length) {
        done += (await handle.write(buffer, done, buffer.length - done, position + done)).bytesWritten
      }
    }),
}

const main = async ([parent, child]) => {
  await load('vhd-lib').mergeVhd(handler, parent, handler, child)
  const handle = await fs.promises.open(parent, 'r+')
  await handle.sync()
  await handle.close()
}

main(process.argv.slice(2)).catch(error => {
  console.error(error)
  process.exit(1)
})
